"""An S3 server on loopback of which a tenth of the calls fail."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_FAILURE = b"<Error><Code>ServiceUnavailable</Code><Message>by chance</Message></Error>"


class Flaky:
    """A WSGI application that answers some calls with an error, before they have any effect."""

    def __init__(self, application: Any, *, share: float, seed: int) -> None:
        self.share, self.calls, self.failures = 0.0, 0, 0
        self.wanted_share = share
        self._application, self._choose = application, random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.calls += 1
            fails = self._choose.random() < self.share
            self.failures += fails
        if not fails:
            answer: Iterable[bytes] = self._application(environ, start)
            return answer
        status = self._choose.choice(["503 Service Unavailable", "500 Internal Server Error"])
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(_FAILURE)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [_FAILURE]


@contextmanager
def flaky_s3(*, share: float = 0.1, seed: int = 0) -> Iterator[tuple[str, Flaky]]:
    """Yields the address of the server, with a bucket "lake", and the application behind it."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Flaky(DomainDispatcherApplication(create_backend_app), share=share, seed=seed)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    boto3.client(
        "s3",
        endpoint_url=address,
        region_name=ENVIRONMENT["AWS_DEFAULT_REGION"],
        aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
    ).create_bucket(Bucket="lake")
    application.share = application.wanted_share
    try:
        yield address, application
    finally:
        server.shutdown()
        thread.join()
