"""A small S3 server of our own: it refuses what R2 refuses, injects faults, and remembers every request.

It runs in a thread of the process of the tests and speaks path-style HTTP or HTTPS on 127.0.0.1: PUT (with
`If-None-Match: *` and Content-MD5), GET, HEAD, DELETE and ListObjectsV2. moto is lenient where R2 is not, so in mode
"r2" this one refuses:

- aws-chunked bodies and checksum trailers (501), which boto3 sends over TLS since 1.36 unless told otherwise;
- more than one write a second to one key (429), keys longer than 1024 bytes, regions other than `auto` and `us-east-1`;
- `Expect: 100-continue` is never answered: a client that waits for it waits in vain; it is recorded besides.

Requests must be signed in both modes, but the signature itself is not verified; the body's digest is.

    with S3Server(tls=True) as s3:
        s3.fail(503, times=2)            # the next two PUTs
        ...
        assert s3.most_puts_in_flight == 1
"""

from tests.support.s3.server import S3Server

__all__ = ["S3Server"]
