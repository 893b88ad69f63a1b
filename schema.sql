-- The tables of servicebroker, applied by the broker itself at its start (src/store/schema.rs).
--
-- The first part is what the Go broker made: same names, columns, ids and defaults, so that its
-- database is taken over as it stands. The second part only ever adds to it. Every statement may
-- run again. No superuser and no extension is needed; PostgreSQL 13 or newer.

do $types$
begin
    if to_regtype('alpha_numeric') is null then
        create domain alpha_numeric as varchar(128) check (value ~ '^[A-Za-z0-9\-]+$');
    end if;
    if to_regtype('cents') is null then
        create domain cents as integer check (value >= 0);
    end if;
    if to_regtype('enginetype') is null then
        create type enginetype as enum ('s3');
    end if;
    if to_regtype('clientdbtype') is null then
        create type clientdbtype as enum ('s3', '');
    end if;
    if to_regtype('costunit') is null then
        create type costunit as enum ('year', 'month', 'day', 'hour', 'minute', 'second', 'cycle',
            'byte', 'megabyte', 'gigabyte', 'terabyte', 'petabyte', 'op', 'unit');
    end if;
    if to_regtype('task_status') is null then
        create type task_status as enum ('pending', 'started', 'finished', 'failed');
    end if;
    if to_regprocedure('mark_updated_column()') is null then
        create function mark_updated_column() returns trigger language plpgsql as $mark$
        begin
            new.updated = now();
            return new;
        end
        $mark$;
    end if;
end
$types$;

create table if not exists services (
    service uuid primary key,
    name alpha_numeric not null,
    human_name text not null,
    description text not null,
    categories varchar(1024) not null default 'Data Stores',
    image text not null default '',
    beta boolean not null default false,
    deprecated boolean not null default false,
    deleted boolean not null default false,
    created timestamptz not null default now(),
    updated timestamptz not null default now()
);

create table if not exists plans (
    plan uuid primary key,
    service uuid not null references services (service),
    name alpha_numeric not null,
    human_name text not null,
    description text not null,
    version text not null,
    type enginetype not null,
    scheme clientdbtype not null,
    categories text not null default '',
    cost_cents cents not null default 0,
    cost_unit costunit not null default 'month',
    attributes json not null,
    provider varchar(1024) not null,
    provider_private_details json not null,
    installable_inside_private_network boolean not null default true,
    installable_outside_private_network boolean not null default true,
    supports_multiple_installations boolean not null default true,
    supports_sharing boolean not null default true,
    preprovision integer not null default 0,
    beta boolean not null default false,
    deprecated boolean not null default false,
    deleted boolean not null default false,
    created timestamptz not null default now(),
    updated timestamptz not null default now()
);

create table if not exists resources (
    id varchar(1024) primary key,
    name varchar(200) not null,
    plan uuid not null references plans (plan),
    claimed boolean not null default false,
    status varchar(1024) not null default 'unknown',
    username varchar(128),
    password varchar(128),
    endpoint varchar(128),
    created timestamptz not null default now(),
    updated timestamptz not null default now(),
    deleted boolean not null default false
);

create table if not exists tasks (
    task uuid primary key,
    resource varchar(1024) not null references resources (id),
    action varchar(1024) not null,
    status task_status not null default 'pending',
    retries integer not null default 0,
    metadata text not null default '',
    result text not null default '',
    created timestamptz not null default now(),
    updated timestamptz not null default now(),
    started timestamptz,
    finished timestamptz,
    deleted boolean not null default false
);

do $triggers$
declare
    kept text;
begin
    foreach kept in array array['services', 'plans', 'resources', 'tasks'] loop
        if not exists (
            select 1 from pg_trigger where tgrelid = to_regclass(kept) and tgname = kept || '_updated'
        ) then
            execute format(
                'create trigger %I before update on %I for each row execute function mark_updated_column()',
                kept || '_updated', kept);
        end if;
    end loop;
end
$triggers$;

-- What this broker adds.

-- Where the bucket is; null in rows of the Go broker until a worker has asked AWS.
alter table resources add column if not exists region text;
alter table resources add column if not exists location text;
alter table resources add column if not exists s3_endpoint text;
alter table resources add column if not exists user_arn text;
-- What the platform sent, to recognise a repeated request.
alter table resources add column if not exists organization text;
alter table resources add column if not exists space text;
-- When the present access key was made.
alter table resources add column if not exists key_since timestamptz;
-- An access key that is made but not given out yet, and the one before the present, which works until then.
alter table resources add column if not exists next_key text;
alter table resources add column if not exists next_secret text;
alter table resources add column if not exists next_key_since timestamptz;
alter table resources add column if not exists previous_key text;
alter table resources add column if not exists previous_key_until timestamptz;
-- The KMS key of objects from before the last change of plan; the tenant goes on reading them.
alter table resources add column if not exists former_kms_key text;

-- When a task is due, who works on it until when, and whether it shall stop.
alter table tasks add column if not exists run_at timestamptz not null default now();
alter table tasks add column if not exists lease_until timestamptz;
alter table tasks add column if not exists worker text;
alter table tasks add column if not exists cancel boolean not null default false;
-- When a worker had it first. Attempts are counted from then on: the Go broker counted looks, once a minute.
alter table tasks add column if not exists begun timestamptz;

create index if not exists tasks_due on tasks (run_at, created, task)
    where status in ('pending', 'started') and not deleted;
create index if not exists tasks_of_resource on tasks (resource, created);
-- The queue's safety net: one running task of this broker for each instance.
create unique index if not exists tasks_running on tasks (resource)
    where status = 'started' and worker is not null and not deleted;

create table if not exists bindings (
    resource varchar(1024) not null references resources (id),
    binding varchar(1024) not null,
    app text,
    created timestamptz not null default now(),
    updated timestamptz not null default now(),
    deleted boolean not null default false,
    primary key (resource, binding)
);

-- The instances that nobody has claimed yet: few among many.
create index if not exists resources_unclaimed on resources (plan, created) where not claimed and not deleted;
-- Plans of which no instance could be made in advance, and until when it is not tried again.
create table if not exists stock_failures (
    plan uuid primary key references plans (plan),
    failures integer not null,
    not_before timestamptz not null
);

-- The offering and its plans. Rows that exist already are the operator's and stay as they are.

insert into services (service, name, human_name, description, categories, image) values (
    '0124611d-2971-4533-8e38-a816a7a95ff1', 'akkeris-s3', 'S3 buckets',
    'A private Amazon S3 bucket with credentials that reach it and nothing else.', 'Data Stores,S3',
    'data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIHZpZXdCb3g9IjAgMCAzMiAzMiI+PHBhdGggZD0iTTUgOGwzIDE5cTggNCAxNiAwbDMtMTl6IiBmaWxsPSIjM2I3YTU3Ii8+PGVsbGlwc2UgY3g9IjE2IiBjeT0iOCIgcng9IjExIiByeT0iNCIgZmlsbD0iIzdmYzI5YiIvPjwvc3ZnPg=='
) on conflict do nothing;

insert into plans (plan, service, name, human_name, description, version, type, scheme, categories,
    cost_cents, cost_unit, attributes, provider, provider_private_details)
select plan::uuid, '0124611d-2971-4533-8e38-a816a7a95ff1', name, human_name, description, 'v1', 's3', 's3',
    'Data Stores', cost_cents, 'month', attributes::json, 'aws-s3', details::json
from (values
    ('1448e0b0-429a-4fa8-92a0-fd0d9e121cae', 'basic', 'S3 Basic',
        'A bucket. What is overwritten or deleted is gone.', 5000,
        '{"versioned":"false", "geo-replication":"false", "encrypted":"false"}',
        '{"versioned":false}'),
    ('aaa8e0b0-429a-44a8-32aa-1d119e12feac', 'versioned', 'S3 Versioned',
        'A bucket that keeps overwritten and deleted objects for 180 days.', 15000,
        '{"versioned":"true", "geo-replication":"false", "encrypted":"false"}',
        '{"versioned":true}'),
    ('a448e0b0-529a-5fa8-a2a0-e11d9e121ca3', 'shield', 'S3 Shield',
        'A bucket whose objects are encrypted with a KMS key.', 6000,
        '{"versioned":"false", "geo-replication":"false", "encrypted":"true"}',
        '{"versioned":false, "encrypted":true, "kmsKeyId":"${AWS_KMS_KEY_ID}"}'),
    ('faa8e0b0-529a-54a8-42aa-fd219e12fea1', 'shield-versioned', 'S3 Shield Versioned',
        'A bucket encrypted with a KMS key that keeps overwritten and deleted objects for 180 days.', 16000,
        '{"versioned":"true", "geo-replication":"false", "encrypted":"true"}',
        '{"versioned":true, "encrypted":true, "kmsKeyId":"${AWS_KMS_KEY_ID}"}')
) as sold (plan, name, human_name, description, cost_cents, attributes, details)
on conflict do nothing;

-- Who this broker is to AWS: the value of a tag on all that it makes there. Drawn once, by whoever comes first.
create table if not exists broker (
    only_row boolean primary key default true check (only_row),
    id uuid not null default gen_random_uuid()
);
insert into broker (only_row) values (true) on conflict do nothing;

-- What metrics show of these tables, counted by one process for all (src/store/census.rs).
create table if not exists census (
    only_row boolean primary key default true check (only_row),
    taken_at timestamptz,
    figures text not null default ''
);
insert into census (only_row) values (true) on conflict do nothing;

-- What the broker looks at to know that there is nothing to do.
create table if not exists schema_version (
    only_row boolean primary key default true check (only_row),
    version integer not null
);
insert into schema_version (version) values (4)
on conflict (only_row) do update set version = excluded.version;
