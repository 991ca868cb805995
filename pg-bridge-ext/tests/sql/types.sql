-- Text, binary form and errors of the type, as pgvector has them.
SELECT '[1,2,3]'::vector;
SELECT ' [ 1,  2 ,    3  ] '::vector;
SELECT '[1.23456]'::vector, '[-1e3]'::vector, '[1e-45]'::vector, '[0.1,1e20,123456789]'::vector;
SELECT '[hello,1]'::vector;
SELECT '[NaN,1]'::vector;
SELECT '[Infinity,1]'::vector;
SELECT '[-Infinity,1]'::vector;
SELECT '[1.5e38,-1.5e38]'::vector;
SELECT '[4e38,1]'::vector;
SELECT '[1e-46,1]'::vector;
SELECT '[1,2,3'::vector;
SELECT '[1,2,3]9'::vector;
SELECT '1,2,3'::vector;
SELECT ''::vector;
SELECT '['::vector;
SELECT '[ '::vector;
SELECT '[,'::vector;
SELECT '[]'::vector;
SELECT '[ ]'::vector;
SELECT '[,]'::vector;
SELECT '[1,]'::vector;
SELECT '[1a]'::vector;
SELECT '[1,,3]'::vector;
SELECT '[1, ,3]'::vector;
SELECT '[1,2,3]'::vector(3);
SELECT '[1,2,3]'::vector(2);
SELECT '[1,2,3]'::vector(3, 2);
SELECT '[1,2,3]'::vector('a');
SELECT '[1,2,3]'::vector(0);
SELECT '[1,2,3]'::vector(16001);
SELECT ('[' || string_agg('1', ',') || ']')::vector IS NULL FROM generate_series(1, 16001);
SELECT vector_send('[1,-2]');
SELECT unnest('{"[1,2,3]", "[4,5,6]"}'::vector[]);
SELECT '{"[1,2,3]"}'::vector(2)[];

-- Casts.
SELECT ARRAY[1,2,3]::vector, ARRAY[1.5,2,3]::vector, ARRAY[1,2,3]::real[]::vector, ARRAY[1,2]::float8[]::vector;
SELECT ARRAY[1,2,3]::vector(2);
SELECT '{}'::real[]::vector;
SELECT '{{1}}'::real[]::vector;
SELECT '{NULL}'::real[]::vector;
SELECT '{NaN}'::real[]::vector;
SELECT '{Infinity}'::real[]::vector;
SELECT '{1e300}'::float8[]::vector;
SELECT '[1,2,3]'::vector::real[];
SELECT array_agg(n)::vector FROM generate_series(1, 16001) n;
CREATE TABLE held (v vector(2));
INSERT INTO held VALUES (ARRAY[1,2]);
INSERT INTO held VALUES ('[1,2,3]');
INSERT INTO held VALUES (ARRAY[1,2,3]);
\copy held TO 'held.bin' (FORMAT binary)
\copy held FROM 'held.bin' (FORMAT binary)
SELECT * FROM held;
DROP TABLE held;

-- Functions and operators.
SELECT '[0,0]'::vector <-> '[3,4]', '[1,2]'::vector <#> '[3,4]', '[1,0]'::vector <=> '[0,1]', '[0,0]'::vector <+> '[3,4]';
SELECT '[1,2]'::vector <-> '[3]';
SELECT '[1,2]'::vector <#> '[3]';
SELECT '[1,2]'::vector <=> '[3]';
SELECT '[1,2]'::vector <+> '[3]';
SELECT '[1,2]'::vector <=> '[0,0]', '[1,1]'::vector <=> '[1,1]', '[1,1]'::vector <=> '[-1,-1]';
SELECT '[3e38]'::vector <-> '[-3e38]';
SELECT '[1,2,3]'::vector + '[4,5,6]', '[1,2,3]'::vector - '[4,5,6]', '[1,2,3]'::vector * '[4,5,6]', '[1]'::vector || '[2,3]';
SELECT '[3e38]'::vector + '[3e38]';
SELECT '[1e37]'::vector * '[1e37]';
SELECT '[1e-37]'::vector * '[1e-37]';
SELECT '[1,2]'::vector + '[3]';
SELECT vector_dims('[1,2,3]'), vector_norm('[3,4]'), l2_normalize('[3,4]'), l2_normalize('[0,0]');
SELECT l2_distance('[0,0]'::vector, '[3,4]'), inner_product('[1,2]'::vector, '[3,4]'), cosine_distance('[1,2]'::vector, '[2,4]'), l1_distance('[0,0]'::vector, '[3,4]');
SELECT subvector('[1,2,3,4,5]', 1, 3), subvector('[1,2,3,4,5]', 3, 9), subvector('[1,2,3,4,5]', -1, 3);
SELECT subvector('[1,2,3]', 4, 1);
SELECT subvector('[1,2,3]', 1, 0);

-- Order.
SELECT '[1,2]'::vector < '[2,1]', '[1,2]'::vector <= '[1,2]', '[1,2]'::vector = '[1,2]', '[1,2]'::vector <> '[1,3]', '[1,2,3]'::vector > '[1,2]', '[1]'::vector >= '[1,2]';
SELECT v FROM (VALUES ('[2]'::vector), ('[1,5]'), ('[1]')) t(v) ORDER BY v;
SELECT count(DISTINCT v) FROM (VALUES ('[2]'::vector), ('[2]'), ('[1]')) t(v);

-- Aggregates.
SELECT avg(v), sum(v) FROM unnest(ARRAY['[1,2,3]'::vector, '[3,5,7]']) v;
SELECT avg(v), sum(v) FROM unnest(ARRAY[]::vector[]) v;
SELECT avg(v) FROM unnest(ARRAY['[1,2]'::vector, '[3]']) v;
