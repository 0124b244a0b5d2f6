"""The fixtures of the end-to-end tests."""

from realserver import engine, environ  # noqa: F401 - pytest finds fixtures by their names here
from s3server import bucket, s3_server  # noqa: F401 - as above
