"""Alembic migrations of the coordinator's database, carried in the package."""
