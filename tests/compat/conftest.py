"""The fixtures of these tests."""

from compatkit import ready, user  # noqa: F401 - pytest finds fixtures by their names here
from s3server import bucket, s3_server  # noqa: F401 - as above
from standin import as_other, machine, port  # noqa: F401 - as above
