"""Campaigns: a durable journal, an oracle that labels through any Executor, and rules for stopping.

Knows neither atoms nor lattices: payloads, labels and configs are plain JSON-able data.
"""

from __future__ import annotations

from haljax.campaign.background import Background
from haljax.campaign.directory import (
    CampaignExists,
    CampaignMismatch,
    clear_disk_errors,
    open_campaign,
    recorded,
    recorded_config,
)
from haljax.campaign.journal import Journal, JournalError, read_journal, write_atomic
from haljax.campaign.ledger import Ledger
from haljax.campaign.oracle import Oracle, OracleError, Outcome
from haljax.campaign.stopping import Limits, Progress, timed, why_stop

__all__ = [
    "Background",
    "CampaignExists",
    "CampaignMismatch",
    "Journal",
    "JournalError",
    "Ledger",
    "Limits",
    "Oracle",
    "OracleError",
    "Outcome",
    "Progress",
    "clear_disk_errors",
    "open_campaign",
    "read_journal",
    "recorded",
    "recorded_config",
    "timed",
    "why_stop",
    "write_atomic",
]
