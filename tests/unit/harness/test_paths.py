"""Paths that tests make from their own place lead to the checkout."""

from tests.support import revision, servers


def test_the_compose_file_of_the_docker_servers_is_there() -> None:
    assert servers.COMPOSE_FILE.is_file()


def test_a_revision_is_of_the_whole_checkout() -> None:
    assert (revision.ROOT / "pyproject.toml").is_file()
