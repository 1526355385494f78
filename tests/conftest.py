"""What all tests share: the fixtures the library gives its hosts."""

pytest_plugins = ["session_lifecycle.testing"]
