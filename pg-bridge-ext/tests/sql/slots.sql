-- What is noted of the cluster's slots, and by whom.
SELECT ruvector.note_slot('ruvector_none', 1073741824);
SELECT count(*) AS noted FROM ruvector.slots;
-- What was noted of a slot that is gone goes with the next note.
INSERT INTO ruvector.slots (slot_name, hold_limit_bytes) VALUES ('ruvector_gone', 5);
SELECT ruvector.note_slot('ruvector_none', 1073741824);
SELECT count(*) AS noted FROM ruvector.slots;
\set VERBOSITY terse
INSERT INTO ruvector.slots (slot_name, hold_limit_bytes) VALUES ('ruvector_wrong', -1);
SELECT count(*) AS advances FROM ruvector.slot_advances;
SELECT '[1]'::vector AS loads_the_library;
SHOW ruvector.slot_hold_limit;
SET ruvector.slot_hold_limit = '1GB';
CREATE ROLE slots_nobody;
SELECT has_function_privilege('slots_nobody', 'ruvector.note_slot(name, bigint)', 'EXECUTE') AS may_note,
	has_table_privilege('slots_nobody', 'ruvector.slots', 'SELECT') AS may_read;
DROP ROLE slots_nobody;
