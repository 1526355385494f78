"""The version of the library, read by the build and by the check of the schema."""

__version__ = "0.1.0"
