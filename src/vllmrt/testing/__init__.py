"""What a plugin is tested with: conformance classes, tiny models, stand-ins, and a server with faults.

For the tests of plugins, with the extra ``vllmrt[testing]``; nothing in vllmrt imports it. A plugin's whole suite is a
class with two or three fixtures::

    from vllmrt.testing import SourceConformance, make_model


    class TestShare(SourceConformance):
        name = "acme-share"

        @pytest.fixture
        def model(self, tmp_path):
            return make_model(tmp_path / "share" / "org" / "name")

docs/testing-plugins.md has what each class asks for and what it asserts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllmrt.testing.byteserver import ByteServer
    from vllmrt.testing.classifiers import ClassifierConformance
    from vllmrt.testing.distributions import fake_dist
    from vllmrt.testing.fakes import FakeProbe, FakeSource, RecordingProgress
    from vllmrt.testing.faults import Fault
    from vllmrt.testing.gpus import GpuProbeConformance
    from vllmrt.testing.imports import assert_import_light
    from vllmrt.testing.models import corrupt, fingerprint, make_model, tree_of
    from vllmrt.testing.remote import RemoteSourceConformance
    from vllmrt.testing.sources import SourceConformance
    from vllmrt.testing.validators import ValidatorConformance

__all__ = [
    "ByteServer",
    "ClassifierConformance",
    "FakeProbe",
    "FakeSource",
    "Fault",
    "GpuProbeConformance",
    "RecordingProgress",
    "RemoteSourceConformance",
    "SourceConformance",
    "ValidatorConformance",
    "assert_import_light",
    "corrupt",
    "fake_dist",
    "fingerprint",
    "make_model",
    "tree_of",
]

_SUITES = {
    "ClassifierConformance": "classifiers",
    "GpuProbeConformance": "gpus",
    "RemoteSourceConformance": "remote",
    "SourceConformance": "sources",
    "ValidatorConformance": "validators",
}
_HELPERS = {
    "ByteServer": "byteserver",
    "FakeProbe": "fakes",
    "FakeSource": "fakes",
    "Fault": "faults",
    "RecordingProgress": "fakes",
    "assert_import_light": "imports",
    "corrupt": "models",
    "fake_dist": "distributions",
    "fingerprint": "models",
    "make_model": "models",
    "tree_of": "models",
}


def __getattr__(name: str) -> Any:
    """Load each module when it is used: only the conformance classes need pytest, and it has to rewrite them first."""
    if name in _SUITES:
        import pytest

        pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("conformance", *_SUITES.values())))
    home = (_SUITES | _HELPERS).get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{home}"), name)
