"""A bucket in bad weather: one request in twenty fails, others never end."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest

from tests.faults.stage import IMAGES, rows
from tests.pipeline.s3_server import Fault, s3_server

if not all(find_spec(name) for name in ("moto", "flask", "s3fs", "boto3", "obstore")):
    pytest.skip("no S3 server: pip install 'segmill[dev]'", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = """
from datetime import timedelta
from pipeline.trees import s3
s3.READ_PATIENCE["read_timeout"] = s3.PATIENCE["timeout"] = "1s"
quick = {"init_backoff": timedelta(milliseconds=20), "max_backoff": timedelta(seconds=1), "base": 2}
s3.RETRIES["backoff"] = quick
"""


@pytest.fixture
def far(stage, monkeypatch):
    """Give the stage with its images in a bucket, and the server."""
    import boto3

    with s3_server() as server:
        env = server.environment | {"AWS_TIMEOUT": "1s"}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.upstream}")
        client.create_bucket(Bucket="night")
        for image in stage.images.glob("*.jpg"):
            client.put_object(Bucket="night", Key=f"images/{image.name}", Body=image.read_bytes())
        yield replace(stage, env=stage.env | env, before=QUICK.strip()), server
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def test_bad_weather_changes_nothing(far, undisturbed):
    stage, server = far
    images, how = "s3://night/images", ("--runner", "local")
    assert stage.label("s3://night/calm", *how, images=images).sum()["done"] == IMAGES
    commit, image = r"PUT .*_delta_log/0+1\.json", r"images/0012\.jpg"
    hangs = [Fault(what, -1, most=1) for what in (commit, r"PUT .*/data/", image)]
    server.reset(*hangs, Fault(r"GET .*jpg", 0, every=31), Fault(".", 503, every=20))
    report = stage.label("s3://night/rough", *how, images=images).sum()
    weather = server.reset()
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES, 0)
    assert [fault.match for fault in weather.faults if not fault.hits] == []
    assert rows("s3://night/rough") == rows("s3://night/calm")
    assert [r.mask.bytes for r in rows("s3://night/rough")] == [r.mask.bytes for r in undisturbed]
