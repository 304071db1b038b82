PRAGMA journal_mode=MEMORY;
CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, amount REAL);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
INSERT INTO item SELECT i, i * 7919 % 97, 'name ' || (i * 31337 % 9973), i * 0.5 FROM n;
COMMIT;
CREATE INDEX by_name ON item(name);
SELECT kind, count(*), sum(amount) FROM item GROUP BY kind ORDER BY 3 DESC LIMIT 5;
SELECT count(*) FROM item a JOIN item b ON a.name = b.name WHERE a.id < 3000;
UPDATE item SET amount = amount + 1 WHERE kind < 20;
SELECT sum(amount) FROM item WHERE name LIKE 'name 1%';
