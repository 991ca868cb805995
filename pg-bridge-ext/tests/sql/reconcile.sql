-- Who may have an index reconciled, and what is said where none can be.
CREATE TABLE items (id int PRIMARY KEY, embedding vector(2));
CREATE INDEX items_idx ON items USING ruhnsw (embedding vector_l2_ops);
SELECT ruvector_reconcile('items_idx');
SELECT ruvector_reconcile('items_pkey');
SELECT ruvector_reconcile(NULL) IS NULL AS is_null;
CREATE ROLE ruvector_test_stranger;
SET ROLE ruvector_test_stranger;
SELECT ruvector_reconcile('items_idx');
RESET ROLE;
DROP ROLE ruvector_test_stranger;
DROP TABLE items;
