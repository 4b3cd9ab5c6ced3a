-- Who may do what, and whose records a reader sees.

CREATE TABLE embedline.role (
    kind text PRIMARY KEY CHECK (kind IN ('owner', 'writer', 'reader')),
    name name NOT NULL
);
COMMENT ON TABLE embedline.role IS
    'the roles that `embedline init --roles` has made; each later init gives them their rights on what is new';

ALTER TABLE embedline.use_case ADD tenanted boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN embedline.use_case.tenanted IS
    'its records belong to tenants: a reader sees those of his own';

ALTER TABLE embedline.record ADD tenant text;
CREATE INDEX record_tenant ON embedline.record (use_case, tenant) WHERE tenant IS NOT NULL;

-- By name, as a store can be restored where a role is not there yet.
CREATE TABLE embedline.tenant_reader (
    role     name NOT NULL,
    tenant   text,
    use_case int REFERENCES embedline.use_case
);
CREATE UNIQUE INDEX tenant_reader_once
    ON embedline.tenant_reader (role, coalesce(use_case, 0), coalesce(tenant, ''), (tenant IS NULL));
COMMENT ON TABLE embedline.tenant_reader IS 'which tenants'' records a role may see: embedline.grant_tenant';
COMMENT ON COLUMN embedline.tenant_reader.tenant IS 'null: every tenant';
COMMENT ON COLUMN embedline.tenant_reader.use_case IS 'null: in every use case';

-- the policy is in functions/roles.sql
ALTER TABLE embedline.run ENABLE ROW LEVEL SECURITY;
