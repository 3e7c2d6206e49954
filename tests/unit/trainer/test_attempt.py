"""Commands and heartbeat on one side, logs on the other."""

import json
import logging
import time
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from trainer.agreement import Agreement
from trainer.attempt import logs
from trainer.attempt.commands import CommandListener
from trainer.attempt.logs import LogWriter, start_logging, stop_logging
from trainer.attempt.outcome import read_outcome
from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.logs import LogLine
from trainer.protocol.outcome import Reason
from trainer.protocol.progress import Activity
from trainer.protocol.request import AttemptRequest
from trainer.search.trial import TrialContext, TrialListener
from trainer.spec.dataset import DIGITS
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.channels import RunChannel


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


class Clock:
    """Time that passes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeChannel:
    """A run's tags: the command to read, what was acknowledged, and how often the attempt showed life."""

    def __init__(self) -> None:
        self.command: Command | None = None
        self.acknowledged: list[Command] = []
        self.beats = self.reads = 0
        self.activity: Activity | None = None
        self.broken: set[str] = set()

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise ConnectionError("no route to MLflow")

    def read_command(self) -> Command | None:
        self.reads += 1
        self._check("read")
        return self.command

    def acknowledge(self, command: Command) -> None:
        self._check("acknowledge")
        self.acknowledged.append(command)

    def heartbeat(self, activity: Activity | None) -> None:
        self._check("heartbeat")
        self.beats += 1
        self.activity = activity

    def read_twice_more(self) -> None:
        before = self.reads
        wait_for(lambda: self.reads >= before + 2)


@pytest.fixture
def channel(monkeypatch):
    monkeypatch.setattr("trainer.attempt.commands.POLL_SECONDS", 0.005)
    monkeypatch.setattr("trainer.attempt.commands.HEARTBEAT_SECONDS", 0.0)
    return FakeChannel()


@pytest.fixture
def listener(channel):
    listener = CommandListener(channel, attempt=3)
    listener.start()
    yield listener
    listener.stop()


def command(generation: int, action: str = "pause", attempt: int = 3) -> Command:
    return Command(attempt=attempt, generation=generation, action=action)


def test_a_command_is_heard_and_acknowledged_once(channel, listener):
    assert listener.requested_action() is None
    channel.command = command(1)
    wait_for(lambda: channel.acknowledged)
    assert listener.requested_action() == "pause"
    channel.read_twice_more()
    assert channel.acknowledged == [command(1)]


def test_a_newer_command_takes_an_older_one_s_place_and_never_the_other_way_round(channel, listener):
    channel.command = command(2, "pause")
    wait_for(lambda: listener.requested_action() == "pause")
    channel.command = command(3, "cancel")
    wait_for(lambda: listener.requested_action() == "cancel")
    channel.command = command(2, "pause")
    channel.read_twice_more()
    assert listener.requested_action() == "cancel"
    assert [seen.generation for seen in channel.acknowledged] == [2, 3]


@pytest.mark.parametrize("attempt", [2, 4])
def test_commands_to_other_attempts_are_passed_over(channel, listener, attempt):
    channel.command = command(9, "cancel", attempt)
    channel.read_twice_more()
    assert listener.requested_action() is None
    assert channel.acknowledged == []


@pytest.mark.usefixtures("listener")
def test_life_is_shown_at_the_start_and_again_and_again(channel):
    assert channel.beats >= 1
    before = channel.beats
    wait_for(lambda: channel.beats >= before + 3)


def test_heartbeats_say_what_the_attempt_is_doing_once_it_says_so(channel, listener):
    """A search never says so: its own heartbeats carry nothing."""
    wait_for(lambda: channel.beats)
    assert channel.activity is None
    tracker = listener.tracker
    tracker.enter("opening")
    wait_for(lambda: channel.activity)
    assert (channel.activity.attempt, channel.activity.phase, channel.activity.step) == (3, "opening", 0)
    tracker.reached(7)
    wait_for(lambda: channel.activity.step == 7)
    assert channel.activity.phase == "training"
    with tracker.during("evaluating"):
        wait_for(lambda: channel.activity.phase == "evaluating")
        assert channel.activity.step == 7
    wait_for(lambda: channel.activity.phase == "training")


def test_activity_says_since_when_it_is_the_same_and_how_long_the_slowest_step_took(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("trainer.tracking.activity.monotonic", clock)
    tracker = ActivityTracker()
    tracker.enter("compiling")
    clock.now += 100  # the first step, with the compiler's time
    tracker.reached(1)
    clock.now += 5
    assert tracker.activity(1).unchanged_s == 5
    with tracker.during("evaluating"):
        clock.now += 5000
        assert tracker.activity(1).unchanged_s == 5000
    assert (tracker.activity(1).phase, tracker.activity(1).unchanged_s) == ("training", 0)
    clock.now += 30
    tracker.reached(2)
    clock.now += 3
    assert (tracker.activity(1).unchanged_s, tracker.activity(1).slowest_step_s) == (3, 100)


def test_heartbeats_come_less_often_than_polls(channel, monkeypatch):
    monkeypatch.setattr("trainer.attempt.commands.HEARTBEAT_SECONDS", 3600.0)
    listener = CommandListener(channel, attempt=3)
    listener.start()
    channel.read_twice_more()
    channel.read_twice_more()
    listener.stop()
    assert channel.beats == 1


def test_a_failing_line_is_told_once_and_survived(channel, listener, caplog):
    channel.broken = {"read", "heartbeat"}
    channel.read_twice_more()
    channel.read_twice_more()
    assert caplog.text.count("MLflow is unreachable") == 1
    channel.broken = set()
    channel.command = command(1, "cancel")
    wait_for(lambda: listener.requested_action() == "cancel")
    channel.broken = {"heartbeat"}
    wait_for(lambda: caplog.text.count("MLflow is unreachable") == 2)


def test_an_acknowledgement_that_fails_is_sent_again_and_the_command_obeyed_meanwhile(channel, listener):
    channel.broken = {"acknowledge"}
    channel.command = command(1, "cancel")
    wait_for(lambda: listener.requested_action() == "cancel")
    channel.read_twice_more()
    assert channel.acknowledged == []
    channel.broken = set()
    wait_for(lambda: channel.acknowledged == [command(1, "cancel")])
    channel.read_twice_more()
    assert len(channel.acknowledged) == 1


def test_after_stop_nothing_more_is_sent(channel):
    listener = CommandListener(channel, attempt=3)
    listener.start()
    channel.read_twice_more()
    listener.stop()
    reads, beats = channel.reads, channel.beats
    channel.command = command(1)
    assert not [thread for thread in logs.threading.enumerate() if thread.name == "commands"]
    assert (channel.reads, channel.beats, listener.requested_action()) == (reads, beats, None)


def test_a_line_that_is_down_at_the_start_is_survived(channel):
    channel.broken = {"heartbeat", "read"}
    listener = CommandListener(channel, attempt=3)
    listener.start()
    channel.broken, channel.command = set(), command(1)
    wait_for(lambda: channel.beats and listener.requested_action() == "pause")
    listener.stop()


def test_one_worker_agrees_with_itself():
    agree = Agreement(1)
    for said in ((None, False), ("pause", True), ("cancel", False)):
        assert agree(*said) == said
    assert agree.share({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="nothing to share"):
        agree.share(None)


# --- logs ----------------------------------------------------------------------------------------------------------

FOLDER = "attempts/2/logs"
REQUEST = AttemptRequest(
    job_id="job-1",
    attempt=2,
    run_id="run",
    tracking_uri="http://mlflow.test",
    artifact_uri="/nowhere",
    request_id="request-7",
    spec=PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": DIGITS}, "model": {"img_size": 8, "patch_size": 2, "in_chans": 1}}
    ),
)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 3600.0)  # lines go when a test says so
    return Store(str(tmp_path))


@pytest.fixture
def writer(store):
    level = logging.getLogger().level
    started = start_logging(store, REQUEST, "rank-1")
    yield started.writer
    stop_logging(started)
    logging.captureWarnings(capture=False)
    logging.getLogger().setLevel(level)


def lines_of(store: Store) -> list[LogLine]:
    """All lines but the first, as a reader of the attempt's folder puts them together."""
    data = b"".join(store.read(f"{FOLDER}/{name}") for name in store.names(FOLDER))
    assert data.endswith(b"\n")
    return [LogLine.model_validate_json(line) for line in data.splitlines()][1:]


def test_the_first_line_says_whose_the_others_are(store, writer):
    writer.flush()
    (line,) = store.read(f"{FOLDER}/rank-1.0001.jsonl").splitlines()
    assert LogLine.model_validate_json(line).message == "Attempt 2 of job-1 begins, submitted by request request-7"


def test_on_standard_error_every_line_says_whose_it_is(store, capsys):
    level = logging.getLogger().level
    started = start_logging(store, REQUEST, "rank-1")
    try:
        logger.warning("odd name %s", "\udcff.png")
        try:
            {}["lost"]
        except KeyError:
            logger.exception("It failed")
    finally:
        stop_logging(started)
        logging.captureWarnings(capture=False)
        logging.getLogger().setLevel(level)
    begin, odd, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    for line in (begin, odd, failed):
        assert (line["job_id"], line["attempt"], line["request_id"]) == ("job-1", 2, "request-7")
        assert line["source"] == "rank-1"
    assert (odd["level"], odd["message"]) == ("warning", r"odd name \udcff.png")
    assert (failed["level"], failed["message"].splitlines()[-1]) == ("error", "KeyError: 'lost'")


def test_lines_tell_time_level_source_and_message(store, writer):
    before = time.time()
    logger.info("Epoch %d of %d", 1, 5)
    logging.getLogger("elsewhere").warning('two\nlines, "quoted" – ü')
    logger.error("bad")
    logger.critical("worse")
    logger.debug("below the level")
    writer.flush()
    assert store.names(FOLDER) == ["rank-1.0001.jsonl"]
    lines = lines_of(store)
    assert [(line.level, line.message) for line in lines] == [
        ("info", "Epoch 1 of 5"), ("warning", "two\nlines, \"quoted\" – ü"), ("error", "bad"), ("error", "worse"),
    ]  # fmt: skip
    assert {line.source for line in lines} == {"rank-1"}
    assert all(before <= line.time <= time.time() for line in lines)


def test_an_exception_comes_with_its_traceback(store, writer):
    try:
        {}["lost"]
    except KeyError:
        logger.exception("It failed")
    writer.flush()
    (line,) = lines_of(store)
    assert line.message.startswith("It failed\nTraceback")
    assert "KeyError: 'lost'" in line.message


def test_warnings_are_lines_too(store, writer):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old weights", UserWarning, stacklevel=1)
    writer.flush()
    (line,) = lines_of(store)
    assert line.level == "warning"
    assert "UserWarning: old weights" in line.message


def test_full_chunks_are_left_and_the_newest_grows(store, writer, monkeypatch):
    monkeypatch.setattr(logs, "CHUNK_BYTES", 300)
    for number in range(12):
        logger.info("line %02d", number)
        writer.flush()
    names = store.names(FOLDER)
    assert names == [f"rank-1.{chunk:04d}.jsonl" for chunk in range(1, len(names) + 1)]
    assert len(names) > 2
    sizes = [len(store.read(f"{FOLDER}/{name}")) for name in names]
    assert all(300 <= size < 400 for size in sizes[:-1])
    assert [line.message for line in lines_of(store)] == [f"line {number:02d}" for number in range(12)]


def test_nothing_is_written_where_nothing_new_was_logged(store, writer, monkeypatch):
    logger.info("one")
    writer.flush()
    monkeypatch.setattr(store, "write", None)
    writer.flush()


def test_lines_are_stored_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.01)
    store = Store(str(tmp_path))
    writer = LogWriter(store, 2, "driver")
    writer.handle(logging.LogRecord("rcmae", logging.INFO, "", 0, "hello", (), None))
    wait_for(lambda: store.names(FOLDER) == ["driver.0001.jsonl"])
    assert LogLine.model_validate_json(store.read(f"{FOLDER}/driver.0001.jsonl")).message == "hello"
    writer.close()
    assert not [thread for thread in logs.threading.enumerate() if thread.name == "logs-driver"]


def test_a_store_that_fails_keeps_the_lines_for_later(store, writer, monkeypatch, capsys):
    monkeypatch.setattr(logs, "CHUNK_BYTES", 150)
    logger.info("before")
    writer.flush()
    working = store.write

    def refuse(name, _data):
        raise StorageError(f"{name}: disk full")

    monkeypatch.setattr(store, "write", refuse)
    for number in range(5):
        logger.info("meanwhile %d", number)
        writer.flush()
    assert "log lines not stored yet" in capsys.readouterr().err
    assert len(lines_of(store)) == 1
    monkeypatch.setattr(store, "write", working)
    logger.info("after")
    writer.flush()
    assert [line.message for line in lines_of(store)] == [
        "before", *(f"meanwhile {number}" for number in range(5)), "after",
    ]  # fmt: skip


def test_stopping_stores_the_last_lines_and_hears_no_more(store):
    before = list(logging.getLogger().handlers)
    level = logging.getLogger().level
    started = start_logging(store, REQUEST, "driver")
    logger.info("last")
    stop_logging(started)
    logging.captureWarnings(capture=False)
    logger.info("too late")
    logging.getLogger().setLevel(level)
    assert [line.message for line in lines_of(store)] == ["last"]
    assert logging.getLogger().handlers == before


def test_a_bad_log_call_does_not_end_the_program(store, writer, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    record = logging.LogRecord("x", logging.INFO, "", 0, "%d images", ("many",), None)
    writer.handle(record)
    writer.handle(logging.LogRecord("x", logging.INFO, "", 0, "odd name %s", ("\udcff.png",), None))
    writer.flush()
    assert [line.message for line in lines_of(store)] == [r"odd name \udcff.png"]
    assert lines_of(store)[0].level == "info"


def test_a_heartbeat_and_what_it_says_are_one_record_of_the_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("beats", str(tmp_path / "artifacts"))).info.run_id
    channel = RunChannel(uri, run, 2)
    channel.heartbeat(None)
    found = client.get_run(run).data
    assert float(found.tags[names.heartbeat(2)]) > 0
    assert found.metrics == {}
    assert names.TAG_ACTIVITY not in found.tags
    said = Activity(attempt=2, phase="training", step=7, unchanged_s=1.5)
    channel.heartbeat(said)
    assert Activity.model_validate_json(client.get_run(run).data.tags[names.TAG_ACTIVITY]) == said


def test_a_later_attempt_means_that_this_one_leaves(tmp_path):
    """Against a real tracking store: the fence of a later attempt reads as a command, an earlier one's does not."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("fence", str(tmp_path / "artifacts"))).info.run_id
    channel = RunChannel(uri, run, 2)
    client.set_tag(run, names.TAG_ATTEMPT, "2")
    assert channel.read_command() is None
    client.set_tag(run, names.TAG_ATTEMPT, "3")
    listener = CommandListener(channel, 2)
    listener.start()
    assert listener.requested_action() == "cancel"
    listener.stop()


# --- trials that hang -------------------------------------------------------------------------------------------------


class Exit(Exception):
    """The process has ended."""


@pytest.fixture
def trial_listener(tmp_path, channel, monkeypatch) -> TrialListener:
    """The second start of a trial, of the seventh attempt of its search; training may stand still for a minute."""

    def end(code: int) -> None:
        raise Exit(code)

    monkeypatch.setattr("trainer.search.trial.os._exit", end)
    # It would end the process, if that had not ended by then.
    monkeypatch.setattr("trainer.search.trial.threading.Timer", lambda *_: SimpleNamespace(start=lambda: None))
    request = REQUEST.model_copy(update={"artifact_uri": str(tmp_path)})
    context = TrialContext(run_id="s", attempt=7, number=3, metrics=(), epochs=1, stall_limit_s=60)
    return TrialListener(channel, request, context)


def test_a_trial_beats_under_its_own_number_and_hears_its_search(trial_listener, channel):
    trial_listener.tracker.enter("opening")
    channel.command = Command(attempt=7, generation=1, action="pause")
    trial_listener.start()
    assert trial_listener.requested_action() == "pause"
    trial_listener.stop()
    assert channel.activity.attempt == 2


@pytest.mark.parametrize(
    ("phase", "minutes", "ends"), [("training", 2, True), ("training", 0.5, False), ("evaluating", 9, False)]
)
def test_a_trial_that_stands_still_ends_its_process_with_an_outcome(
    trial_listener, tmp_path, monkeypatch, phase, minutes, ends
):
    clock = Clock()
    monkeypatch.setattr("trainer.tracking.activity.monotonic", clock)
    trial_listener.tracker.enter("compiling")
    trial_listener.tracker.reached(4)
    trial_listener.tracker.enter(phase)
    clock.now += 60 * minutes
    with pytest.raises(Exit) if ends else nullcontext():
        trial_listener._poll()
    store = Store(str(tmp_path))
    assert store.exists(names.outcome_file(2)) == ends
    if ends:
        outcome = read_outcome(store, 2)
        assert (outcome.reason, outcome.message) == (
            Reason.STALLED, "Training stood still at step 4 for 120 s, and the attempt was stopped."
        )  # fmt: skip
