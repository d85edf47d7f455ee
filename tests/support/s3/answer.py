"""Answers in S3's XML, and the refusals among them."""

from xml.sax.saxutils import escape

from aiohttp import web


class Refusal(Exception):
    """An answer in S3's XML."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def answer_xml(status: int, text: str) -> web.Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
    return web.Response(status=status, body=body, content_type="application/xml")


def answer_refusal(refusal: Refusal) -> web.Response:
    return answer_xml(
        refusal.status,
        f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>",
    )
