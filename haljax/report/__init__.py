"""The HTML report of a campaign, made from its run directory alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from haljax import __version__
from haljax.campaign import read_journal, write_atomic
from haljax.report.drawing import number


def write_report(directory: str | Path) -> Path:
    """Write ``report.html``, one file that needs no other, and ``pictures/*.png`` into a run directory.

    Works at any time: what is not there yet is left out.

    Raises
    ------
    FileNotFoundError : the directory holds no campaign.
    JournalError : the journal is damaged, or the disk is full.
    """
    import jax
    from jinja2 import Environment, PackageLoader

    directory = Path(directory)
    journal = directory / "journal.jsonl"
    if not journal.exists():
        raise FileNotFoundError(f"{directory} holds no campaign: give a directory that has a journal.jsonl")
    records = list(read_journal(journal))
    of: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        of.setdefault(record["type"], []).append(record)
    latest: dict[str, Any] = next((r for r in reversed(records) if r["type"] in ("start", "resume")), {})
    config = latest.get("config", {})
    # A stop counts until the campaign is resumed.
    last: dict[str, Any] = next((r for r in reversed(records) if r["type"] in ("stop", "resume")), {})
    seconds: Counter[str] = Counter()
    for record in of.get("iteration", []):
        seconds.update({stage: number(s) for stage, s in record["seconds"].items()})

    kind = "free_energy" if "order_parameters" in config else "hal"
    template, own = import_module(f"haljax.report.{kind}").contents(directory, of, last)
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=PackageLoader("haljax.report", ".")
    )
    page = environment.get_template(template).render(
        directory=str(directory.resolve()),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        versions={"haljax": __version__, "jax": jax.__version__} | latest.get("versions", {}),
        reason=last.get("reason"),
        iterations=of.get("iteration", []),
        seconds=seconds,
        failed=of.get("failed", []),
        config=json.dumps(config, indent=2, ensure_ascii=False),
        number=lambda x, form=".3g": format(x, form) if math.isfinite(x := number(x)) else "–",
        **own,
    )
    path = directory / "report.html"
    write_atomic(path, page)
    return path
