"""Files of a run that were cut short or had a bit flipped: no changed value is ever read."""

import json
import shutil

import pytest
from trials import assert_refused, count, some, train

from paddle_maml.commands import cli
from paddle_maml.engine import checkpoint
from paddle_maml.errors import UserError

# The files of a set; of validations that were kept there are two.
NAMES = [*checkpoint.FILES, checkpoint.AVERAGE, "kept-*.pdparams"]
EVALUATE = ["--episodes", "2", "--device", "cpu", "--weights"]


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def set_of(run):
    [path] = run.glob("checkpoint-*")
    return path


def damages(data, bits, cuts=range(10)):
    """(what, bytes) of a file cut at each tenth of its length, and with every so many-th bit flipped."""
    for tenth in cuts:
        yield f"cut at {tenth} tenths", data[: len(data) * tenth // 10]
    for bit in range(0, 8 * len(data), bits):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(changed)


def of_set(path, name):
    """The name of the first such file, and those of all files but the states."""
    everything = sorted(file.name for file in path.iterdir() if file.name != checkpoint.STATES)
    assert len(everything) == 6
    return sorted(path.glob(name))[0].name, everything


@pytest.mark.parametrize("name", NAMES)
def test_no_damage_to_a_checkpoint_is_read(run, name):
    path = set_of(run)
    name, everything = of_set(path, name)
    data, others = (path / name).read_bytes(), [other for other in everything if other != name]
    for what, changed in damages(data, some(100, 1009)):
        (path / name).write_bytes(changed)
        with pytest.raises(UserError) as error:
            checkpoint.read_set(str(path), *everything)
        assert name in str(error.value) and "\n" not in str(error.value), what
        if name != checkpoint.STATES:
            assert len(checkpoint.read_set(str(path), *others).files) == 5, what
        count("checkpoint files cut at a tenth or with a bit flipped, refused by what reads them")


@pytest.mark.slow
def test_no_bit_of_the_states_can_change_unseen(run):
    """What the issue counted 3,214 of 11,200 of."""
    path = set_of(run)
    data = (path / checkpoint.STATES).read_bytes()
    for what, changed in damages(data, some(1, 53)):
        (path / checkpoint.STATES).write_bytes(changed)
        with pytest.raises(UserError):
            checkpoint.read_set(str(path))
        count("single bits of model.pdstates, flipped and refused")
        assert what


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_command_goes_on_from_damage(run, capfd, name):
    path, log = set_of(run), (run / "metrics.csv").read_bytes()
    name, _ = of_set(path, name)
    data = (path / name).read_bytes()
    for _, changed in damages(data, 8 * len(data) // some(5, 1) + 1, range(0, 10, some(1, 10))):
        (path / name).write_bytes(changed)
        sentence = assert_refused(capfd, train_more, [run])
        assert name in sentence
        if name in (checkpoint.BEST, checkpoint.STATES):
            assert_refused(capfd, cli.main_eval, [*EVALUATE, str(run)])
        else:
            assert cli.main_eval([*EVALUATE, str(run)]) == 0
        assert (run / "metrics.csv").read_bytes() == log and (path / name).read_bytes() == changed
        count("the same by train.py --resume and eval.py: one sentence and status 2, nothing touched")
    (path / name).write_bytes(data)
    assert train_more([run]) == 0


def train_more(arguments):
    return train(arguments[0], "--resume", iterations=13)


@pytest.mark.slow
def test_damage_to_weights_on_their_own_is_one_sentence_where_it_can_be_known(run, tmp_path, capfd):
    data = (set_of(run) / checkpoint.BEST).read_bytes()
    lone, refused = tmp_path / "lone.pdparams", 0
    arguments = [*EVALUATE, str(lone), "--dataset", "synthetic", "--width", "4"]
    for what, changed in damages(data, 8 * len(data) // some(20, 2) + 1, range(0, 10, some(1, 5))):
        lone.write_bytes(changed)
        if what.startswith("cut"):
            assert_refused(capfd, cli.main_eval, arguments)
        else:
            # A flipped bit of a weight is another weight: nothing of a lone file tells.
            capfd.readouterr()
            status = cli.main_eval(arguments)
            assert status in (0, 2) and "Traceback" not in capfd.readouterr().err
            refused += status == 2
        count("files of weights on their own, damaged: refused, or read where it cannot be known")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.csv", "report.json"])
def test_damage_to_log_and_report_stops_no_one(run, capfd, name):
    data = (run / name).read_bytes()
    for _, changed in damages(data, 8 * len(data) // some(20, 2) + 1, range(0, 10, some(1, 5))):
        (run / name).write_bytes(changed)
        if name == "metrics.csv":
            capfd.readouterr()
            status = train(run, "--resume")
            errors = capfd.readouterr().err
            assert status in (0, 2) and errors.count("\n") == (status == 2) and "Traceback" not in errors
        else:
            status = cli.main(["results", "table", str(run)])
            errors = capfd.readouterr().err
            assert status in (0, 2) and errors.count("\n") == (status == 2)
            assert status == 2 or isinstance(json.loads(changed), dict)
        count("logs and reports, damaged: read, or refused in one sentence")
