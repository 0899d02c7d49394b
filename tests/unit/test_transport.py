from __future__ import annotations

import time

from execute_batch_scheduler.adapters.transport import Local


def test_marks_of_long_ago_are_removed_and_others_are_fresh_once(tmp_path):
    old, new = tmp_path / "20200101T000000-0.0.ended", tmp_path / f"{time.strftime('%Y%m%dT%H%M%S')}-1.0.started"
    old.touch()
    new.touch()
    marks = Local().marks(str(tmp_path), lambda: None)
    assert marks.fresh() == {new.name: None}
    assert not old.exists()
    assert marks.fresh() == {}
    (tmp_path / "30000101T000000-2.0.started").touch()
    assert marks.fresh() == {"30000101T000000-2.0.started": None}


def test_a_directory_of_marks_may_come_later(tmp_path):
    marks = Local().marks(str(tmp_path / "events"), lambda: None)
    assert marks.fresh() == {}
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "30000101T000000-2.0.started").touch()
    assert list(marks.fresh()) == ["30000101T000000-2.0.started"]
