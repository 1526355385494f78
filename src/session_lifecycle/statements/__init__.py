"""Pure functions that build SQL, one module per question. They execute nothing and know no connection."""
