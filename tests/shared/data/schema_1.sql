BEGIN TRANSACTION;
CREATE TABLE entries (
	id VARCHAR(32) NOT NULL, 
	namespace TEXT NOT NULL, 
	scope VARCHAR(32) NOT NULL, 
	question TEXT, 
	documents VARCHAR(32) NOT NULL, 
	semantic BOOLEAN NOT NULL, 
	answer TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	model TEXT NOT NULL, 
	input_tokens INTEGER, 
	output_tokens INTEGER, 
	finish_reason TEXT NOT NULL, 
	seconds FLOAT, 
	created FLOAT NOT NULL, 
	expires FLOAT, 
	hits INTEGER NOT NULL, 
	embedder TEXT, 
	vector BLOB, 
	point VARCHAR(32), 
	indexed_in VARCHAR(32), 
	PRIMARY KEY (id)
);
INSERT INTO "entries" VALUES('cca776013a1d6cc0a145630e9b78dd84','shop','c804ce198ec337e3dc762bdd1a09aece','how long to return goods','c885b7dbcaa37a138a76769f85b414df',1,'Within 30 days of delivery.','','m',7,5,'',NULL,1.79523834596104550362e+09,1.79783034596104550361e+09,0,'bag-of-words-16',X'0000283728370000000028370000000028370000000000000000283700000000','5d8c87a57f4b7a1331ec6832a66d5779','');
INSERT INTO "entries" VALUES('df38105d9ff432e62735882182849959','','c804ce198ec337e3dc762bdd1a09aece',NULL,'cae66941d9efbd404e4d88758ea67670',0,'There.','{}','',NULL,NULL,'',NULL,1.79523834596461462969e+09,1.79783034596461462973e+09,1,NULL,NULL,NULL,NULL);
CREATE TABLE entry_documents (
	entry_id VARCHAR(32) NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	document_id TEXT NOT NULL, 
	supports BOOLEAN NOT NULL, 
	PRIMARY KEY (entry_id, digest)
);
INSERT INTO "entry_documents" VALUES('cca776013a1d6cc0a145630e9b78dd84','d481070b1836a51057bb80bc06149610','d1',1);
CREATE TABLE examples (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	namespace TEXT NOT NULL, 
	question TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	model TEXT NOT NULL, 
	documents TEXT NOT NULL, 
	input_tokens BIGINT, 
	output_tokens BIGINT, 
	seconds FLOAT, 
	streamed BOOLEAN NOT NULL, 
	entry_id TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "examples" VALUES(1,1.0,'','q','a','','[]',NULL,NULL,NULL,0,NULL);
CREATE TABLE judgements (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at FLOAT NOT NULL, 
	namespace TEXT NOT NULL, 
	scope VARCHAR(32) NOT NULL, 
	entry_id VARCHAR(32) NOT NULL, 
	asked TEXT NOT NULL, 
	stored TEXT NOT NULL, 
	similarity FLOAT NOT NULL, 
	score FLOAT NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	"right" BOOLEAN NOT NULL, 
	source VARCHAR(16) NOT NULL
);
CREATE TABLE lookups (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	namespace TEXT NOT NULL, 
	scope VARCHAR(32) NOT NULL, 
	question TEXT, 
	tier VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	entry_id VARCHAR(32), 
	similarity FLOAT, 
	seconds FLOAT NOT NULL, 
	tokens_saved INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "lookups" VALUES(1,1.79523834596943974496e+09,'','c804ce198ec337e3dc762bdd1a09aece',NULL,'exact','','df38105d9ff432e62735882182849959',1.0,7.07225000951439142227e-04,0);
CREATE TABLE meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema_version','1');
INSERT INTO "meta" VALUES('dimension:92ba52d2bf4bfee73bca9d4bd82e01c4','16');
CREATE INDEX ix_entries_scope ON entries (namespace, scope, point);
CREATE INDEX ix_entries_point ON entries (point);
CREATE INDEX ix_entries_created ON entries (created);
CREATE INDEX ix_entries_indexed_in ON entries (indexed_in);
CREATE INDEX ix_entry_documents_document_id ON entry_documents (document_id);
CREATE INDEX ix_examples_namespace ON examples (namespace, id);
CREATE INDEX ix_judgements_namespace ON judgements (namespace, id);
DELETE FROM "sqlite_sequence";
COMMIT;
