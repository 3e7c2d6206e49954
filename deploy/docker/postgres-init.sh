#!/bin/sh
# A user and a database each for the service, MLflow and the trials of searches. Postgres's own image runs it when the
# data folder is new; by hand it adds what an older folder lacks, and changes nothing that is there.
set -eu
for name in rcmae mlflow rcmae_studies; do
  psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --set ON_ERROR_STOP=1 --set name="$name" <<'SQL'
\set file /run/secrets/ :name _db_password
\set password `cat :file`
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', :'name', :'password')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
