"""A real S3 server for the tests of a module, without faults at the start of each test."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.s3_server import s3_server

if TYPE_CHECKING:
    from tests.pipeline.s3_server import Proxy

BUCKETS = count()


@pytest.fixture(scope="module")
def s3_of_module():
    """Start a server, and let the environment lead every S3 client to it."""
    if not all(find_spec(name) for name in ("moto", "flask", "s3fs", "boto3")):
        pytest.skip("no S3 server: pip install 'segmill[dev]'")
    with s3_server() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
        yield proxy
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(s3_of_module: Proxy):
    """Give the module's server, without faults."""
    s3_of_module.reset()
    yield s3_of_module
    s3_of_module.reset()


@pytest.fixture
def bucket(s3: Proxy) -> str:
    """Make an empty bucket; its URL."""
    import boto3

    name = f"bucket-{next(BUCKETS)}"
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3.upstream}").create_bucket(Bucket=name)
    return f"s3://{name}"
