import dataclasses

import pytest

from paddle_maml.commands.command_line import CommandLine
from paddle_maml.engine.presets import PRESETS
from paddle_maml.engine.settings import Settings, flag, settings_from_dict, settings_from_preset
from paddle_maml.errors import UserError


def parse(*arguments):
    parser = CommandLine(prog="test")
    parser.add_settings()
    return settings_from_preset(**parser.parse(arguments))


def test_defaults_are_the_first_preset():
    assert parse() == Settings() == settings_from_preset("omniglot-5way-1shot")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_as_plain_values(name):
    settings = settings_from_preset(name)
    assert settings_from_dict(settings.as_dict()) == settings
    for key, value in PRESETS[name].items():
        assert getattr(settings, key) == value


def test_the_competitions_protocol():
    way5_shot5 = settings_from_preset("omniglot-5way-5shot")
    assert (way5_shot5.order, way5_shot5.inner_steps, way5_shot5.inner_lr, way5_shot5.meta_batch) == (
        1,
        5,
        0.04,
        32,
    )
    assert (way5_shot5.k_query, way5_shot5.iterations, way5_shot5.meta_lr, way5_shot5.rotations) == (
        15,
        10000,
        0.001,
        False,
    )
    assert settings_from_preset("omniglot-20way-1shot").meta_batch == 16


def test_the_papers_protocol():
    paper = settings_from_preset("paper-5way-5shot")
    assert (paper.architecture, paper.order, paper.inner_steps, paper.steps_at_test, paper.inner_lr) == (
        "stride",
        2,
        1,
        3,
        2.0,
    )
    assert (paper.k_query, paper.meta_batch, paper.iterations, paper.rotations) == (5, 32, 60000, True)
    assert settings_from_preset("paper-20way-1shot").meta_batch == 16


@pytest.mark.parametrize(
    "arguments, preset",
    [
        ("--learner reptile", "reptile-5way-1shot"),
        ("--learner anil --n-way 20 --k-shot 5 --meta-batch 3", "anil-20way-5shot"),
        ("--learner prototypical --n-way 7", "prototypical-5way-1shot"),
        ("--learner lstm --k-shot 5", "lstm-5way-5shot"),
        ("--learner fine-tuning --n-way 5", "fine-tuning"),
        ("--learner maml --n-way 20", "omniglot-5way-1shot"),
        ("--learner anil --dataset sinusoid", "sinusoid"),
        ("--learner reptile --preset best-5way-1shot", "best-5way-1shot"),
    ],
)
def test_a_learner_alone_has_the_preset_for_its_task(arguments, preset):
    settings = parse(*arguments.split())
    assert settings.preset == preset
    assert settings.learner == arguments.split()[1]
    assert settings.meta_lr == PRESETS[preset].get("meta_lr", 0.001)


def test_options_override_the_preset():
    settings = parse("--preset", "paper-20way-1shot", "--inner-lr", "0.5", "--no-rotations", "--n-way=7")
    assert (settings.inner_lr, settings.rotations, settings.n_way, settings.meta_batch) == (0.5, False, 7, 16)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--inner-lt", "1"], "did you mean --inner-lr?"),
        (["--inner", "1"], "unknown option --inner"),  # no abbreviations
        (["--inner-lr", "much"], "--inner-lr: invalid float value: 'much'"),
        (["--inner-lr"], "expected one argument"),
        (["--meta-lr", "1e-320"], "--meta-lr is 1e-320, but must be a finite number above 0 that float32"),
        (["--val-every=٣"], "--val-every: invalid int value: '٣'"),
        (["--meta-lr=1_0.0"], "--meta-lr: invalid float value: '1_0.0'"),
        (["--val-every", " 5"], "--val-every: invalid int value: ' 5'"),
        (
            ["--preset", "quickstart", "--data-dir", "/nosuch"],
            "data_dir is /nosuch, but the characters are drawn",
        ),
        (["5"], "unknown option 5"),
        (["--preset", "quickstat"], "did you mean quickstart?"),
        (["--n-way", "0"], "--n-way is 0, but must be at least 2"),
        (["--meta-batch", "-1"], "--meta-batch is -1"),
        (["--inner-lr", "nan"], "--inner-lr is nan"),
        (["--meta-lr", "inf"], "--meta-lr is inf"),
        (["--order", "3"], "must be one of 1, 2"),
        (["--split-rule", "random"], "must be one of competition, vinyals"),
        (["--average-weights", "1"], "--average-weights is 1.0, but must be from 0 to below 1"),
        (["--train-n-way", "4"], "train_n_way is 4, but must be at least n_way, 5"),
        (
            ["--train-n-way", "6", "--network", "a:b"],
            "train_n_way is 6, but which outputs of a network of your own",
        ),
        (["--test-statistics", "all"], "must be one of query, support, one, population"),
        (["--preset", "sinusoid", "--test-within-alphabet"], "test_within_alphabet is True, but sinusoids"),
        (["--output", ""], "--output is '', but must not be empty"),
        (["--first-order-iterations", "9"], "first_order_iterations is 9, but order is 1"),
        (["--inner-batch", "5"], "inner_batch is 5, but the learner is maml"),
        (["--inner-optimizer", "adam"], "inner_optimizer is adam, but the learner is maml"),
        (["--preset", "reptile-5way-1shot", "--order", "2"], "order is 2, but the learner is reptile"),
        (
            ["--preset", "reptile-5way-1shot", "--adapted", "head"],
            "adapted is head, but the learner is reptile",
        ),
        (["--learner", "anil", "--adapted", "head"], "adapted is head, but the learner is anil"),
        (["--learner", "anil", "--adapted", "all"], "adapted is all, but the learner is anil"),
        (["--learner", "prototypical", "--order", "1"], "order is 1, but the learner is prototypical"),
        (["--learner", "lstm", "--dataset", "sinusoid"], "sinusoids have no classes: use maml or anil"),
        (
            ["--learner", "prototypical", "--inner-batch", "5"],
            "inner_batch is 5, but the learner is prototypical",
        ),
        (
            ["--order", "2", "--inner-steps", "1", "--multi-step-iterations", "9"],
            "multi_step_iterations is 9, but with 1 inner step",
        ),
        (["--start-inner-lr-factor", "0.5"], "start_inner_lr_factor is 0.5, but training starts from fresh"),
        (
            ["--start-from", "20way-1shot", "--start-inner-lr-factor", "0.5"],
            "start_inner_lr_factor is 0.5, but no inner rates are learned",
        ),
    ],
)
def test_wrong_options_are_errors(arguments, sentence):
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert sentence in str(error.value)


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    settings = parse("--data-dir=~/omniglot", "--output", "~/run")
    assert (settings.data_dir, settings.output) == ("/home/someone/omniglot", "/home/someone/run")


def test_unknown_and_mistyped_fields_are_errors():
    with pytest.raises(UserError, match="did you mean 'n_way'|did you mean n_way"):
        settings_from_dict({"n_ways": 5})
    with pytest.raises(UserError, match="must be of type int"):
        settings_from_dict({"n_way": True})
    with pytest.raises(UserError, match="must be of type bool"):
        settings_from_dict({"rotations": "yes"})


def test_a_command_can_take_back_what_a_preset_has():
    for changes in (
        {"preset": "best-5way-1shot", "start_from": None},
        {"preset": "paper-5way-1shot", "test_inner_steps": None},
    ):
        settings = settings_from_preset(**changes)
        command = settings.command()
        assert command.endswith(" none") and parse(*command.split()[2:]) == settings


def test_the_command_of_settings_is_what_was_typed():
    settings = settings_from_preset(
        "best-5way-1shot", n_way=7, rotations=False, iterations=5, output="x", inner_lr=0.25, processes=3
    )
    assert (
        settings.command()
        == "python train.py --preset best-5way-1shot --no-rotations --n-way 7 --inner-lr 0.25 --iterations "
        "5 --output runs/x"
    )
    for output in (None, "runs/quickstart", "/mnt/quickstart/"):
        assert (
            settings_from_preset("quickstart", output=output).command()
            == "python train.py --preset quickstart"
        )
    for start, told in (
        ("/home/me/run", "runs/run"),
        ("/home/me/run/checkpoint-5.1/best.pdparams", "runs/run/checkpoint-5.1/best.pdparams"),
        ("5way-1shot", "5way-1shot"),
    ):
        assert settings_from_preset(start_from=start).command().endswith(f"--start-from {told}")
    arguments = settings.command().split()[2:]
    assert parse(*arguments) == settings.portable() != settings


def test_help_explains_every_setting():
    parser = CommandLine(prog="test")
    parser.add_settings()
    text = " ".join(parser.format_help().split())
    for field in dataclasses.fields(Settings):
        assert flag(field.name) in text
        assert field.metadata["help"][:30] in text
    assert "SUPPRESS" not in text


@pytest.mark.parametrize(
    "name, value",
    [("meta_batch", 10**9), ("width", 10**8), ("processes", 10**6), ("seed", 2**64), ("inner_steps", 10**11)],
)
def test_sizes_that_would_fill_the_memory_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}, but must be at most"):
        settings_from_preset("quickstart", **{name: value})


def test_a_folder_is_named_in_reports_and_its_place_is_not():
    settings = settings_from_preset("folder-5way-1shot", dataset="folder:/home/me/birds/", split_seed=2)
    assert settings.folder == "/home/me/birds" and settings.trains_on == "folder:birds"
    assert settings.with_whole_path().dataset == "folder:/home/me/birds"
    command = settings.command()
    assert command == "python train.py --preset folder-5way-1shot --dataset folder:birds --split-seed 2"
    assert parse(*command.split()[2:]) == settings.portable()


def test_a_folder_of_images_must_be_named(monkeypatch):
    unnamed = settings_from_preset("folder-5way-1shot")
    with pytest.raises(UserError, match="--dataset is folder, but which folder .* --dataset folder:PATH"):
        unnamed.with_whole_path()
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse("--dataset=folder:~/birds").folder == "/home/someone/birds"
    assert settings_from_preset(dataset="synthetic").with_whole_path().dataset == "synthetic"


def test_miniimagenets_protocol():
    settings = settings_from_preset("folder-5way-1shot")
    assert (settings.image_size, settings.in_channels, settings.width, settings.order) == (84, 3, 32, 2)
    assert (settings.inner_steps, settings.steps_at_test, settings.inner_lr) == (5, 10, 0.05)
    assert (settings.meta_batch, settings.k_query, settings.iterations) == (4, 15, 60000)
