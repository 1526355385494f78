"""The truth about AI-agent sessions, kept in Postgres."""
