"""tpu/requirements.txt: what a TPU VM gets fits what setup.cfg asks for."""

import configparser

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tpu.fake_gcloud import ROOT, TPU


def pinned() -> dict[str, str]:
    lines = (TPU / "requirements.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def asked_for() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = config["options"]["install_requires"] + config["options.extras_require"]["train"]
    lines = [line.strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned_to_a_version_that_fits():
    pins = pinned()
    for requirement in asked_for():
        name = canonicalize_name(requirement.name)
        # tensorflow-tpu stands in for tensorflow, in the same version.
        version = pins["tensorflow-tpu" if name == "tensorflow" else name]
        assert version in requirement.specifier, f"{requirement}, but pinned to {version}"


def test_tensorflow_does_not_overwrite_the_tpus():
    assert "tensorflow" not in pinned()
    assert "tensorflow-cpu" not in pinned()


def test_the_pins_are_those_of_requirements_in():
    lines = (TPU / "requirements.in").read_text().splitlines()
    for line in lines:
        if not line.startswith("#"):
            name, version = line.split("==")
            assert pinned()[name] == version
