import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddle_maml import MAML, MetaLearner
from paddle_maml.engine import checkpoint, provenance
from paddle_maml.engine.plain_data import read_file, read_plain_data
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.engine.weights import load_weights, optimizer_state, set_optimizer_state, set_weights
from paddle_maml.errors import UserError

GOLDEN = os.path.join(os.path.dirname(os.path.dirname(__file__)), "golden")


def small_learner(n_way=3, width=4):
    return MetaLearner(MAML(n_way=n_way, width=width, image_size=16), inner_steps=1)


def weights_of(layer):
    return {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def train_one_step(learner, optimizer):
    random = np.random.RandomState(0)
    x = random.randn(2, 3, 1, 16, 16).astype("float32")
    y = np.tile(np.arange(3), (2, 1))
    loss, _ = learner.meta_loss(x, y, x, y)
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()


# ---- files of this and the other Paddle ----


@pytest.mark.parametrize("name", ["paddle26_numpy1.pdparams", "paddle33_numpy2.pdparams"])
def test_files_of_both_supported_versions_are_read(name):
    path = os.path.join(GOLDEN, name)
    content = read_file(path)
    np.testing.assert_array_equal(content["weight"], np.arange(6, dtype="float32").reshape(2, 3))
    np.testing.assert_array_equal(content["bias"], np.float32([0.5, -1, 2]))
    np.testing.assert_array_equal(paddle.load(path)["weight"].numpy(), content["weight"])


def test_stock_paddle_reads_what_is_written(tmp_path):
    learner = small_learner()
    optimizer = paddle.optimizer.Adam(0.01, parameters=learner.parameters())
    train_one_step(learner, optimizer)
    state = optimizer_state(optimizer, learner)
    weights, states = weights_of(learner), {"iteration": 1, "settings": {"a": [1, None, 0.1]}}
    path = checkpoint.write_checkpoint(str(tmp_path), 1, weights, weights, state, states)
    for name, expected in ((checkpoint.WEIGHTS, weights_of(learner)), (checkpoint.OPTIMIZER, state)):
        loaded = paddle.load(os.path.join(path, name))
        assert_same({key: np.asarray(value) for key, value in loaded.items()}, expected)
    states = paddle.load(os.path.join(path, checkpoint.STATES))
    assert read_file(os.path.join(path, checkpoint.STATES)) == states
    assert sorted(states.pop("sha256")) == sorted([checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER])
    assert states == {"iteration": 1, "settings": {"a": [1, None, 0.1]}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_save_writes_is_read(tmp_path, protocol):
    learner = small_learner()
    path = str(tmp_path / "stock.pdparams")
    paddle.save(learner.net.state_dict(), path, protocol=protocol)
    other = small_learner()
    load_weights(other, path)
    assert_same(weights_of(other), weights_of(learner))


def test_arrays_of_every_layout_are_read(tmp_path):
    arrays = [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.array(2.5),
        np.zeros((0, 3)),
        np.array([True, False]),
    ]
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps([arrays, np.float32(1.5), np.int64(3)], protocol=4))
    read, one, three = read_file(str(path))
    for array, expected in zip(read, arrays):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
    assert (one, three) == (1.5, 3)


# ---- hostile and damaged files ----


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def global_call(module, name, *arguments):
    """A pickle that calls module.name, made by hand."""
    file = io.BytesIO()
    file.write(b"\x80\x02c" + f"{module}\n{name}\n".encode())
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    file.write(body + b"R.")
    return file.getvalue()


HOSTILE = {
    "dtype of objects": pickle.dumps(np.array([object, None], dtype=object)),
    "structured dtype": pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
    "instance": b"\x80\x02(ios\nsystem\n.",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "attributes of a function": b"\x80\x02cnumpy\ndtype\n}X\x08\x00\x00\x00__doc__0X\x01\x00\x00\x00asb.",
    "huge memo": b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
    "huge shape": global_call("numpy", "ndarray", (10**12,)),
    "deep": b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".",
    "many": b"\x80\x04(" + b"]" * 300_000 + b"l.",
    "cycle": b"\x80\x04]\x94h\x00a.",
    "fan-out": b"\x80\x04]"
    + b"".join(b"\x94(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"h" + bytes([i]) + b"t" for i in range(19))
    + b".",
    "one text, bytes many times": b"\x80\x02X"
    + struct.pack("<I", 1000)
    + b"x" * 1000
    + b"q\x00X\x06\x00\x00\x00latin1q\x01c_codecs\nencode\nq\x02("
    + b"h\x02h\x00h\x01\x86R" * 1000
    + b"t.",
    "empty": b"",
    "text": b"these are no weights\n",
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    path = tmp_path / "model.pdparams"
    path.write_bytes(HOSTILE[name])
    learner = small_learner()
    before = weights_of(learner)
    with pytest.raises(UserError) as error:
        load_weights(learner, str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert_same(weights_of(learner), before)


def test_a_text_is_turned_into_bytes_once(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(HOSTILE["one text, bytes many times"])
    with pytest.raises(UserError, match="uses one text many times"):
        read_file(str(path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda call: call,
        lambda call: {"weight": call},
        lambda call: [np.zeros(2), (call,)],
        lambda call: {call: 1},
    ],
)
@pytest.mark.parametrize("protocol", range(5))
def test_nothing_in_a_file_runs(tmp_path, protocol, wrap):
    marker, path = str(tmp_path / "ran"), str(tmp_path / "model.pdparams")
    content = pickle.dumps(wrap(Call(os.mkdir, marker)), protocol=protocol)
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(UserError, match="is refused"):
        read_file(path)
    assert not os.path.exists(marker)
    pickle.loads(content)
    assert os.path.exists(marker)  # what the file would have done


@pytest.mark.parametrize(
    "module, name",
    [
        ("paddle", "load"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("builtins", "getattr"),
        ("numpy", "core.multiarray._reconstruct"),
        ("collections", "namedtuple"),
    ],
)
def test_only_makers_of_arrays_may_be_named(tmp_path, module, name):
    path = tmp_path / "model.pdparams"
    path.write_bytes(global_call(module, name, "x"))
    with pytest.raises(UserError, match=f"wants to use {module}.{name}"):
        read_file(str(path))


def test_every_truncation_is_refused(tmp_path):
    whole = pickle.dumps({"a": np.arange(4.0), "b": [1, "x"]}, protocol=4)
    path = tmp_path / "cut.pdparams"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_file(str(path))


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_file(str(tmp_path / "none.pdparams"))


# ---- weights of another network ----


@pytest.mark.parametrize(
    "change, shapes",
    [({"n_way": 4}, "[4, 3]"), ({"width": 5}, "[4, 1, 3, 3] in the file, but [5, 1, 3, 3] here")],
)
def test_another_network_is_named_with_its_shapes(tmp_path, change, shapes):
    path = str(tmp_path / "model.pdparams")
    paddle.save(small_learner().state_dict(), path)
    with pytest.raises(UserError) as error:
        load_weights(small_learner(**change), path)
    assert ("linear.weight" if "n_way" in change else "block1.conv_weight") in str(error.value)
    assert shapes in str(error.value)


def test_missing_and_unknown_parameters_and_nan_are_refused(tmp_path):
    learner, path = small_learner(), str(tmp_path / "model.pdparams")
    whole = weights_of(learner)
    name = list(whole)[0]
    for content, sentence in (
        ({**whole, "extra": np.zeros(1)}, "'extra' is unknown"),
        ({key: value for key, value in whole.items() if key != name}, f"{name} is missing"),
        ({**whole, name: whole[name] * np.nan}, "finite"),
        ({**whole, name: "text"}, "shape str"),
    ):
        paddle.save(content, path)
        with pytest.raises(UserError, match=sentence):
            load_weights(learner, path)


def test_learned_rates_need_the_settings_of_their_run(tmp_path):
    path = str(tmp_path / "learned.pdparams")
    learned, fresh = (
        MetaLearner(MAML(n_way=3, width=4, image_size=16), inner_steps=2, learn_inner_lr=True)
        for _ in range(2)
    )
    learned.inner_rates.set_value(np.random.RandomState(0).rand(2, 14).astype("float32"))
    paddle.save(learned.state_dict(), path)
    load_weights(fresh, path)
    assert_same(weights_of(fresh), weights_of(learned))
    for fit, way_out in (
        (False, "name the run or checkpoint folder"),
        (True, "to start from them, train with --learn-inner-lr"),
    ):
        with pytest.raises(UserError, match=f"learned inner rates: .*{way_out}"):
            load_weights(small_learner(), path, fit=fit)


@pytest.mark.parametrize("kind", ["npz", "list"])
def test_the_competitions_files_are_read(tmp_path, kind):
    net, other = small_learner().net, small_learner()
    arrays = [parameter.numpy() for parameter in net.parameters()]
    path = str(tmp_path / kind)
    with open(path, "wb") as file:
        if kind == "npz":
            np.savez(file, **{f"p{number:02}": array for number, array in enumerate(arrays)})
        else:
            pickle.dump(arrays, file)
    for load in (lambda: load_weights(other.net, path), lambda: load_weights(other, path)):
        for parameter in other.parameters():
            parameter.set_value(parameter * 0)
        load()
        assert_same(weights_of(other.net), weights_of(net))
    with pytest.raises(UserError, match="linear"):
        load_weights(small_learner(n_way=2).net, path)
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        load_weights(other.net, path)


def test_an_npz_of_objects_is_refused(tmp_path):
    path = str(tmp_path / "hostile.npz")
    np.savez(path, p00=np.array([Call(eval, "1/0")], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        load_weights(small_learner().net, path)


# ---- the meta-optimizer ----


def test_optimizer_state_survives_other_parameter_names():
    learner = small_learner()
    optimizer = paddle.optimizer.Adam(0.01, parameters=learner.parameters())
    train_one_step(learner, optimizer)
    train_one_step(learner, optimizer)
    weights, state = weights_of(learner), optimizer_state(optimizer, learner)

    paddle.ones([3])  # other tensors before: other names
    other = small_learner()
    set_weights(other, weights, "test")
    assert [p.name for p in other.parameters()] != [p.name for p in learner.parameters()]
    resumed = paddle.optimizer.Adam(0.01, parameters=other.parameters())
    set_optimizer_state(resumed, other, state, "test")
    assert_same(weights_of(other), weights)
    assert_same(optimizer_state(resumed, other), state)
    train_one_step(learner, optimizer)
    train_one_step(other, resumed)
    assert_same(weights_of(other), weights_of(learner))


# ---- the set ----


def write(folder, iteration):
    array = {"a": np.full(3, float(iteration))}
    return checkpoint.write_checkpoint(folder, iteration, array, array, array, {"iteration": iteration})


def iteration_of(path):
    contents = [
        read_file(os.path.join(path, name))["a"][0]
        for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER)
    ]
    assert set(contents) == {read_file(os.path.join(path, checkpoint.STATES))["iteration"]}
    return contents[0]


def test_the_newest_set_replaces_the_older(tmp_path):
    folder = str(tmp_path)
    assert checkpoint.newest_checkpoint(folder) is None
    for iteration in (9, 10, 10, 100):
        assert checkpoint.newest_checkpoint(folder) != write(folder, iteration)
        assert iteration_of(checkpoint.newest_checkpoint(folder)) == iteration
        assert len(os.listdir(folder)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to die in the middle of a write")
@pytest.mark.parametrize(
    "function, call",
    [
        ("mkdir", 1),
        ("fsync", 1),
        ("fsync", 4),
        ("fsync", 5),
        ("rename", 1),
        ("fsync", 6),
        ("rmdir", 1),
        ("unlink", 2),
    ],
)
def test_death_at_any_point_of_a_write_leaves_a_whole_set(tmp_path, function, call):
    folder = str(tmp_path)
    write(folder, 1)
    child = os.fork()
    if child == 0:
        calls, original = [], getattr(os, function)

        def die(*arguments, **named):
            calls.append(1)
            if len(calls) == call:
                os._exit(9)
            return original(*arguments, **named)

        setattr(os, function, die)
        write(folder, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    survivor = checkpoint.newest_checkpoint(folder)
    assert iteration_of(survivor) in (1, 2)
    checkpoint.remove_leftovers(folder)
    assert os.listdir(folder) == [os.path.basename(survivor)]
    write(folder, 3)
    assert iteration_of(checkpoint.newest_checkpoint(folder)) == 3


def test_a_write_that_fails_keeps_the_old_set(tmp_path, monkeypatch):
    folder = str(tmp_path)
    write(folder, 1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "rename", fail)
    with pytest.raises(OSError):
        write(folder, 2)
    assert os.listdir(folder) == ["checkpoint-1"]
    assert iteration_of(checkpoint.newest_checkpoint(folder)) == 1


def test_what_others_put_into_the_folder_stays(tmp_path):
    """Other programs name their checkpoints so too."""
    write(str(tmp_path), 1)
    for name in ("checkpoint-500", "checkpoint-0", "checkpoint-7"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-500/pytorch_model.bin", "checkpoint-0/model.pdparams"):
        (tmp_path / name).write_text("precious")
    (tmp_path / ".mine.partial").write_text("x")
    (tmp_path / ".report.json.0123456789abcdef.partial").write_text("x")
    write(str(tmp_path), 500)
    assert sorted(os.listdir(tmp_path)) == [
        ".mine.partial",
        "checkpoint-0",
        "checkpoint-500",
        "checkpoint-500.1",
        "checkpoint-7",
    ]
    assert (tmp_path / "checkpoint-500" / "pytorch_model.bin").read_text() == "precious"
    assert iteration_of(checkpoint.newest_checkpoint(str(tmp_path))) == 500


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_set_that_lacks_a_file_is_refused_and_kept(tmp_path, name):
    write(str(tmp_path), 2)
    os.remove(tmp_path / "checkpoint-2" / name)
    for call in (checkpoint.newest_checkpoint, checkpoint.remove_leftovers, provenance.find_weights):
        with pytest.raises(UserError, match=f"checkpoint-2 lacks {name}"):
            call(str(tmp_path))
    assert len(os.listdir(tmp_path / "checkpoint-2")) == 3


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    """The files of a set by name."""
    folder, learner = tmp_path_factory.mktemp("set"), small_learner()
    states = {"iteration": 1, "settings": settings_from_preset("quickstart").as_dict()}
    path = Path(
        checkpoint.write_checkpoint(
            str(folder), 1, weights_of(learner), weights_of(learner), {"steps": 0}, states
        )
    )
    return {name: (path / name).read_bytes() for name in checkpoint.FILES}


def put(folder, files, **changed):
    path = folder / "checkpoint-1"
    path.mkdir(exist_ok=True)
    for name, data in {**files, **changed}.items():
        (path / name).write_bytes(data)
    return str(path)


def test_a_set_of_before_the_digest_of_the_states_is_read(whole_set, tmp_path):
    path = put(tmp_path, whole_set, **{checkpoint.STATES: whole_set[checkpoint.STATES][:-64]})
    assert checkpoint.read_set(path, *checkpoint.FILES[:-1]).states["iteration"] == 1
    origin = provenance.find_weights(str(tmp_path))[1]
    assert (origin.settings, origin.trained_on) == (settings_from_preset("quickstart"), ["synthetic"])


def test_no_bit_of_a_set_can_change_unseen(whole_set, tmp_path):
    path = put(tmp_path, whole_set)
    assert checkpoint.read_set(path, *checkpoint.FILES[:-1])
    for name, data in whole_set.items():
        steps = 37 if name == checkpoint.STATES else 997
        for bit in range(0, 8 * len(data), steps):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with open(os.path.join(path, name), "wb") as file:
                file.write(changed)
            with pytest.raises(UserError) as error:
                checkpoint.read_set(path, *checkpoint.FILES[:-1])
            assert name in str(error.value) and "\n" not in str(error.value)
        put(tmp_path, whole_set)


def test_only_what_is_needed_is_read(whole_set, tmp_path):
    path = put(tmp_path, whole_set, **{checkpoint.OPTIMIZER: b"damaged", checkpoint.WEIGHTS: b""})
    weights, _ = provenance.find_weights(str(tmp_path))
    assert weights == (os.path.join(path, checkpoint.BEST), whole_set[checkpoint.BEST])
    with pytest.raises(UserError, match="model.pdparams is damaged"):
        provenance.find_weights(os.path.join(path, checkpoint.WEIGHTS))


def test_weights_are_found_where_a_run_in_training_replaces_its_checkpoints(tmp_path):
    """At every listing of a folder and every opening of a file that is read, the set is replaced."""
    folder, settings = str(tmp_path), settings_from_preset("quickstart").as_dict()
    numbers = iter(range(1, 1000))

    def replace():
        number = next(numbers)
        array = {"a": np.full(3, float(number))}
        states = {"iteration": number, "settings": settings}
        checkpoint.write_checkpoint(folder, number, array, array, array, states)

    replace()
    for moment in range(1, 12):
        for module, name in ((os, "listdir"), (checkpoint, "read_bytes")):
            with pytest.MonkeyPatch.context() as patch:
                original, calls = getattr(module, name), []

                def replaced(*arguments, original=original, calls=calls, moment=moment, patch=patch):
                    calls.append(1)
                    if len(calls) == moment:
                        patch.undo()
                        replace()
                    return original(*arguments)

                patch.setattr(module, name, replaced)
                found = checkpoint.read_best(folder)
            [iteration] = set(read_plain_data(found.files[checkpoint.BEST], found.path)["a"])
            assert found.states["iteration"] == iteration


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4"])
def test_weights_of_another_float_type_are_converted(tmp_path, dtype):
    learner, other = small_learner(), small_learner()
    halves = {name: np.round(array * 8) / 8 for name, array in weights_of(learner).items()}
    (tmp_path / "w.pdparams").write_bytes(
        pickle.dumps({name: array.astype(dtype) for name, array in halves.items()}, protocol=4)
    )
    load_weights(other, str(tmp_path / "w.pdparams"))
    assert_same(weights_of(other), halves)
