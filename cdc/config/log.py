"""`[log]`: the least level that is logged."""

from typing import Literal

from pydantic import Field

from cdc.config.section import Section


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
