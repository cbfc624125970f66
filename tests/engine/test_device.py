"""What is set up before Paddle is imported."""

import os
import subprocess
import sys

import pytest
from tiny_run import ROOT

from paddle_maml.engine import device

AMD = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 "
    "fma\n\nprocessor\t: 1\nvendor_id\t: AuthenticAMD\n"
)


@pytest.fixture
def clean_environment(monkeypatch):
    """os.environ without MKL's variable, put back after the test."""
    monkeypatch.setattr(
        os, "environ", {name: value for name, value in os.environ.items() if name != "MKL_DEBUG_CPU_TYPE"}
    )
    return os.environ


def as_if_on(monkeypatch, tmp_path, text):
    """The machine says this of its processor."""
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(device, "_CPUINFO", str(path))


@pytest.mark.parametrize(
    "text, expected",
    [
        (AMD, "5"),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), None),
        (AMD.replace(" avx2", ""), None),
        ("", None),
    ],
)
def test_mkl_is_told_of_amd_processors(clean_environment, monkeypatch, tmp_path, text, expected):
    as_if_on(monkeypatch, tmp_path, text)
    device.prepare()
    assert clean_environment.get("MKL_DEBUG_CPU_TYPE") == expected


def test_a_choice_of_the_user_stays(clean_environment, monkeypatch, tmp_path):
    as_if_on(monkeypatch, tmp_path, AMD)
    clean_environment["MKL_DEBUG_CPU_TYPE"] = "4"
    device.prepare()
    assert clean_environment["MKL_DEBUG_CPU_TYPE"] == "4"


COMMAND = """
import os, sys
from paddle_maml.commands import cli
from paddle_maml.engine import device

def command(argument):
    assert "paddle" not in sys.modules
    import ctypes
    variable = ctypes.CDLL(None).getenv
    variable.restype = ctypes.c_char_p
    print(variable(b"MKL_DEBUG_CPU_TYPE"))

device._CPUINFO = sys.argv[1]
sys.exit(cli.run_command(command, None))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no getenv to load")
def test_commands_tell_mkl_before_paddle_is_imported(clean_environment, tmp_path):
    (tmp_path / "cpuinfo").write_text(AMD)
    output = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path / "cpuinfo")],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (output.stdout, output.stderr) == ("b'5'\n", "")


def test_the_processor_has_the_name_that_the_system_gives_it(monkeypatch, tmp_path):
    as_if_on(monkeypatch, tmp_path, AMD)
    assert device.processor() == "AMD EPYC"


def test_a_system_without_cpuinfo_names_the_processor_in_its_own_way(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "_CPUINFO", str(tmp_path / "none"))
    monkeypatch.setattr(device.platform, "processor", lambda: "arm")
    assert device.processor() == "arm"
