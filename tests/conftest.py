"""What all tests share: the fixtures the library gives its hosts, and that no example has a deadline."""

from hypothesis import settings

pytest_plugins = ["session_lifecycle.testing"]

# How long an example takes says how busy the machine is.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
