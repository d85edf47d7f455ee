# Stands in for MinIO where no registry of images is in reach: the S3 server of our tests, which keeps objects in memory.
FROM python:3.13-slim
RUN pip install --no-cache-dir aiohttp cryptography
COPY certificates.py /opt/s3/tests/
COPY s3 /opt/s3/tests/s3
COPY deploy/stand_ins/minio deploy/stand_ins/mc /usr/local/bin/
