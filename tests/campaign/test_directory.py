from __future__ import annotations

import json
import logging

import pytest

from haljax.campaign import CampaignExists, CampaignMismatch, Journal, JournalError, open_campaign

CONFIG = {"basis": {"cutoff": 5.0, "elements": ("Al", "Cu")}, "stop": {"max_labels": 100}, "seed": 1}


def changed(**sections):
    return {**CONFIG, **sections}


def test_start_and_resume(tmp_path):
    directory = tmp_path / "deep" / "run"
    with open_campaign(directory, CONFIG) as journal:
        journal.append({"type": "label", "energy": 1.0})
    with open_campaign(directory, CONFIG, resume=True) as journal:
        start, label, resumed = journal
    assert start["type"] == "start" and start["config"] == json.loads(json.dumps(CONFIG))
    assert {"python", "numpy"} <= start["versions"].keys()
    assert label["energy"] == 1.0
    assert resumed == {**start, "type": "resume"}


def test_what_is_there_is_not_overwritten(tmp_path):
    open_campaign(tmp_path, CONFIG).close()
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(CampaignExists, match="pass --resume .*choose another directory"):
        open_campaign(tmp_path, CONFIG)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    open_campaign(tmp_path, CONFIG, resume=True).close()  # the refusal left no lock


def test_resuming_nothing_starts(tmp_path, caplog):
    with caplog.at_level(logging.INFO), open_campaign(tmp_path, CONFIG, resume=True) as journal:
        assert [r["type"] for r in journal] == ["start"]
    assert "holds no campaign yet" in caplog.text


def test_killed_before_its_first_record_was_whole(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"type": "sta')
    with open_campaign(tmp_path, CONFIG) as journal:
        assert [r["type"] for r in journal] == ["start"]


def test_another_config_is_refused_key_by_key(tmp_path):
    open_campaign(tmp_path, CONFIG).close()
    before = (tmp_path / "journal.jsonl").read_bytes()
    other = {"basis": {"cutoff": 6.5, "elements": ["Al", "Cu"], "order": 3}, "stop": {"max_labels": 200}}
    with pytest.raises(CampaignMismatch) as caught:
        open_campaign(tmp_path, other, resume=True, may_change={"stop"})
    message = str(caught.value)
    assert "basis.cutoff: was 5.0, now 6.5" in message
    assert "basis.order: was absent, now 3" in message
    assert "seed: was 1, now absent" in message
    assert "elements" not in message and "max_labels" not in message
    assert (tmp_path / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("free", ["stop", "stop.max_labels"])
def test_limits_may_change(tmp_path, free):
    open_campaign(tmp_path, CONFIG).close()
    with open_campaign(tmp_path, changed(stop={"max_labels": 200}), resume=True, may_change=[free]) as journal:
        assert [r["config"]["stop"]["max_labels"] for r in journal] == [100, 200]


def test_a_free_key_frees_no_other_that_begins_alike(tmp_path):
    open_campaign(tmp_path, CONFIG).close()
    with pytest.raises(CampaignMismatch, match="stopwatch: was absent, now 1"):
        open_campaign(tmp_path, changed(stopwatch=1), resume=True, may_change=["stop"])


def test_other_versions_are_noted(tmp_path, caplog, monkeypatch):
    open_campaign(tmp_path, CONFIG).close()
    monkeypatch.setattr("platform.python_version", lambda: "9.9.9")
    open_campaign(tmp_path, CONFIG, resume=True).close()
    assert 'now "9.9.9"' in caplog.text


def test_nan_in_the_config(tmp_path):
    with pytest.raises(JournalError, match="the config holds NaN"):
        open_campaign(tmp_path, changed(seed=float("nan")))


def test_someone_elses_journal(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append({"hello": 1})
    with pytest.raises(JournalError, match="not a campaign's journal"):
        open_campaign(tmp_path, CONFIG, resume=True)


def test_run_directory_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(JournalError, match="run directory .*run cannot be made.*Choose another"):
        open_campaign(tmp_path / "run", CONFIG)
