"""The plugin host against plugins that are wrong in every way that their authors could find."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from pathlib import Path
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt import discovery
from vllmrt.errors import ConfigError, PluginError, SourceError, TransientSourceError, VllmrtError
from vllmrt.host import Guard, PluginHost, Source
from vllmrt.settings import Settings
from vllmrt.testing import fake_dist
from vllmrt.types import Candidate, Digest, Finding, ModelRequest, ModelTree, Severity, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Install = Callable[..., None]

REQUEST = ModelRequest("org/name")
TREE = ModelTree(Path("/model"), request=REQUEST, candidate=Candidate("/model", path=Path("/model")))
IMPORTS = """\
import time
from pathlib import Path

import vllmrt
from vllmrt.errors import *
from vllmrt.types import *

"""
SOURCE = """\
class Acme:
    name = "acme"

    def probe(self, request):
        {probe}


@vllmrt.hookimpl
def vllmrt_sources(settings):
    yield Acme()
"""
VALIDATOR = """\
class Acme:
    name = "acme"

    def check(self, tree):
        {check}


@vllmrt.hookimpl
def vllmrt_validators(settings):
    yield Acme()
"""
OWNER = "acme-kit 1.2.3"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on sys.path; what was imported from it is forgotten afterwards."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(directory)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Install a plugin whose one module has this source."""

    def run(
        source: str,
        *,
        group: str = discovery.SOURCES,
        name: str = "acme",
        distribution: str = "Acme_Kit",
        value: str | None = None,
    ) -> None:
        module = f"{distribution.lower()}_{group.rpartition('.')[2]}_{site.parent.name.replace('-', '_')}"
        point = (value or "{}").format(module)
        fake_dist(site, distribution, "1.2.3", {group: {name: point}}, {module: IMPORTS + source})
        importlib.invalidate_caches()

    return run


@pytest.fixture
def host(site: Path) -> Callable[..., PluginHost]:
    def make(**settings: Any) -> PluginHost:
        return PluginHost(Settings(**{"plugin_timeout": 0.3, **settings}), discovery.entry_points([str(site)]))

    return make


def load(host: PluginHost, name: str = "acme") -> Source:
    entry = host.select(discovery.SOURCES, name)
    assert entry is not None
    return host.source(entry)


def fill(template: str, body: str) -> str:
    key = "probe" if "{probe}" in template else "check"
    return template.replace(f"{{{key}}}", indent(dedent(body), " " * 8).strip())


def blamed(error: pytest.ExceptionInfo[PluginError], *parts: str) -> None:
    """The message names distribution and version, and the hint how to do without it."""
    assert str(error.value).startswith(f"{OWNER}: ")
    for part in parts:
        assert part in str(error.value)
    assert "VLLMRT_DISABLE_PLUGINS=acme-kit" in (error.value.hint or "")
    assert error.value.exit_code == 1


# loading a source

FINE = fill(SOURCE, 'return (Candidate("here", path=Path("/model")),)')

LOADING = {
    "raises at import": ("raise ValueError('sorry')", "loading failed: ValueError: sorry"),
    "a syntax error": ("def f(:", "SyntaxError"),
    "imports what is not there": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "exits at import": ("import sys; sys.exit(0)", "SystemExit"),
    "interrupts at import": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "hangs at import": ("time.sleep(3)", "gave no answer in 0.3 s"),
    "hangs in the hook": ("@vllmrt.hookimpl\ndef vllmrt_sources():\n    time.sleep(3)", "gave no answer in 0.3 s"),
    "hangs in the generator": (
        "@vllmrt.hookimpl\ndef vllmrt_sources():\n    yield object()\n    time.sleep(3)",
        "gave no answer in 0.3 s",
    ),
    "yields for ever": (
        "@vllmrt.hookimpl\ndef vllmrt_sources():\n    for _ in range(300):\n        time.sleep(.01)\n        yield 1",
        "gave no answer in 0.3 s",
    ),
    "raises in the generator": (
        "@vllmrt.hookimpl\ndef vllmrt_sources():\n    yield object()\n    raise OSError('late')",
        "OSError: late",
    ),
    "returns None": ("@vllmrt.hookimpl\ndef vllmrt_sources():\n    return None", "TypeError"),
    "returns a number": ("@vllmrt.hookimpl\ndef vllmrt_sources():\n    return 5", "TypeError"),
    "yields None": ("@vllmrt.hookimpl\ndef vllmrt_sources():\n    yield None", "offers no source called acme"),
    "yields a string": ("@vllmrt.hookimpl\ndef vllmrt_sources():\n    yield 'acme'", "acme, but str"),
    "yields a source without probe": (
        "class Acme:\n    name = 'acme'\n\n@vllmrt.hookimpl\ndef vllmrt_sources():\n    yield Acme()",
        "offers no source called acme, but Acme",
    ),
    "a name of another": (FINE.replace('"acme"', '"other"'), "offers no source called acme, but Acme"),
    "a name that raises": (
        FINE.replace('name = "acme"', "name = property(lambda self: 1 / 0)"),
        "acme",
    ),
    "a name that hangs": (
        FINE.replace('name = "acme"', "name = property(lambda self: time.sleep(3))"),
        "0.3 s",
    ),
    "no hook": ("x = 1", "offers no source called acme, but nothing"),
    "a hook without its mark": (FINE.replace("@vllmrt.hookimpl\n", ""), "offers no source called acme, but nothing"),
    "a misspelt hook": (FINE.replace("vllmrt_sources", "vllmrt_source"), "vllmrt_source"),
    "a misspelt argument": (FINE.replace("(settings)", "(setting)"), "setting"),
    "an argument of another hook": (FINE.replace("(settings)", "(process)"), "process"),
    "an error that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise Odd",
        "Odd",
    ),
}


@pytest.mark.parametrize(("source", "part"), LOADING.values(), ids=LOADING)
def test_a_source_that_cannot_be_loaded_is_named(
    source: str, part: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    install(source)
    start = time.monotonic()
    with pytest.raises(PluginError) as caught:
        load(host())
    blamed(caught, part)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("fault", LOADING)
def test_another_source_of_the_same_run_loads_after_it(
    fault: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    install(LOADING[fault][0])
    install(FINE.replace('"acme"', '"fine"'), name="fine", distribution="Fine")
    one = host()
    with pytest.raises(PluginError):
        load(one)
    assert one.probe(load(one, "fine"), REQUEST) == (Candidate("here", path=Path("/model")),)


def test_a_source_that_is_fine(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE)
    one = host()
    source = load(one)
    assert source.entry.owner == OWNER
    assert one.probe(source, REQUEST) == (Candidate("here", path=Path("/model")),)


def test_a_source_is_loaded_again_without_being_registered_twice(
    install: Install, host: Callable[..., PluginHost]
) -> None:
    install(FINE)
    one = host()
    assert load(one).entry == load(one).entry


def test_one_module_may_offer_two_sources(site: Path, host: Callable[..., PluginHost]) -> None:
    both = FINE + '    other = Acme()\n    other.name = "other"\n    yield other\n'
    fake_dist(
        site,
        "pair",
        "1.0",
        {discovery.SOURCES: {"acme": "pair_kit", "other": "pair_kit"}},
        {"pair_kit": IMPORTS + both},
    )
    one = host()
    assert (load(one, "acme").object.name, load(one, "other").object.name) == ("acme", "other")


@pytest.mark.parametrize("value", ["{}:plugin", "{}:plugin [extra]", "{} : plugin", "{}:holder.plugin"])
def test_an_entry_point_may_name_an_object(value: str, install: Install, host: Callable[..., PluginHost]) -> None:
    as_class = "class Plugin:\n" + indent(FINE.partition("@vllmrt")[2].join(["@vllmrt", ""]), "    ")
    as_class = as_class.replace("(settings)", "(self, settings)")
    tail = "\nplugin = Plugin()\n\nclass holder:\n    plugin = plugin\n"
    install(FINE.partition("@vllmrt")[0] + as_class + tail, value=value)
    assert load(host()).object.name == "acme"


@pytest.mark.parametrize("value", ["{}:nothing", "{}:", "no_such_module_anywhere", "{}.sub", ":", "", "..{}", "{} x"])
def test_an_entry_point_that_leads_nowhere_is_named(
    value: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    install("x = 1", value=value or " ")
    with pytest.raises(PluginError) as caught:
        load(host())
    blamed(caught)


def test_the_settings_are_handed_to_the_hook(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE.replace("yield Acme()", "Acme.port = settings.port; yield Acme()"))
    assert load(host(port=4711)).object.port == 4711  # type: ignore[attr-defined]


# asking a source

PROBES = {
    "raises": ("raise ValueError('sorry')", "probe failed: ValueError: sorry"),
    "exits": ("raise SystemExit(3)", "SystemExit"),
    "raises an error of another kind of ours": ("raise ConfigError('x')", "ConfigError: x"),
    "hangs": ("time.sleep(3)", "probe gave no answer in 0.3 s"),
    "hangs in its generator": ("yield Candidate('x')\ntime.sleep(3)", "probe gave no answer in 0.3 s"),
    "raises in its generator": ("yield Candidate('x')\nraise OSError('late')", "OSError: late"),
    "returns None": ("return None", "probe"),
    "returns a string": ("return '/model'", "a str, not a Candidate"),
    "returns a path": ("return Path('/model')", "probe"),
    "returns a candidate alone": ("return Candidate('x')", "probe"),
    "returns paths": ("return [Path('/model')]", "not a Candidate"),
    "returns a skip in a list": ("return [Skip('x')]", "a Skip, not a Candidate"),
    "returns the class": ("return [Candidate]", "a type, not a Candidate"),
    "returns None in a list": ("return [None]", "a NoneType, not a Candidate"),
    "returns None behind a candidate": ("return [Candidate('x', path=Path('/x')), None]", "NoneType, not a Candidate"),
    "a path that is a string": ("return [Candidate('x', path='/model')]", "path"),
    "a location that is no text": ("return [Candidate(5, path=Path('/model'))]", "location"),
    "a root that is a string": ("return [Candidate('x', path=Path('/model'), root='/')]", "root"),
    "a revision that is no text": ("return [Candidate('x', path=Path('/model'), revision=5)]", "revision"),
    "a skip whose reason is no text": ("return Skip(None)", "reason"),
}


@pytest.mark.parametrize(("body", "part"), PROBES.values(), ids=PROBES)
def test_a_source_that_answers_wrongly_is_named(
    body: str, part: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    install(fill(SOURCE, body))
    one = host()
    source = load(one)
    with pytest.raises(PluginError) as caught:
        one.probe(source, REQUEST)
    blamed(caught, part)


ANSWERS = {
    "a skip": ("return Skip('no share', hint='mount it')", Skip("no share", hint="mount it")),
    "nothing": ("return ()", ()),
    "a list": ("return [Candidate('x')]", (Candidate("x"),)),
    "a generator": ("yield Candidate('x')\nyield Candidate('y')", (Candidate("x"), Candidate("y"))),
}


@pytest.mark.parametrize(("body", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_source_may_answer(body: str, answer: object, install: Install, host: Callable[..., PluginHost]) -> None:
    install(fill(SOURCE, body))
    one = host()
    assert one.probe(load(one), REQUEST) == answer


@pytest.mark.parametrize("spelling", ["SHA-256", "Sha256", "sha256"])
def test_a_digest_is_known_however_it_is_spelt(
    spelling: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    digest = f"Digest({spelling!r}, value='0')"
    install(fill(SOURCE, f"return [Candidate('x', files=(RemoteFile('a', size=1, version='1', digest={digest}),))]"))
    one = host()
    (candidate,) = one.probe(load(one), REQUEST)
    assert [file.digest for file in candidate.files] == [Digest("sha256", value="0")]


SIGNED = "https://s3.example/b/k?X-Amz-Credential=AKID&X-Amz-Signature=5ecre7"


@pytest.mark.parametrize(
    "said", [f"403 Client Error: Forbidden for url: {SIGNED}", f"retries exceeded with url: {SIGNED[18:]}"]
)
def test_a_signed_url_in_an_exception_is_not_shown(
    said: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    install(fill(SOURCE, f"raise OSError({said!r})"))
    one = host()
    source = load(one)
    with pytest.raises(PluginError) as caught:
        one.probe(source, REQUEST)
    blamed(caught, "/b/k?***")
    assert "5ecre7" not in f"{caught.value!r}"
    assert "AKID" not in str(caught.value)


def test_what_a_source_raises_on_purpose_is_passed_on(install: Install, host: Callable[..., PluginHost]) -> None:
    install(fill(SOURCE, "raise TransientSourceError('503', hint='wait', retry_after=2.5)"))
    one = host()
    source = load(one)
    with pytest.raises(TransientSourceError, match=r"^503$") as caught:
        one.probe(source, REQUEST)
    assert (caught.value.hint, caught.value.retry_after) == ("wait", 2.5)


def test_a_source_that_refuses_while_it_is_loaded_is_heard(install: Install, host: Callable[..., PluginHost]) -> None:
    install("@vllmrt.hookimpl\ndef vllmrt_sources():\n    raise SourceError('no credentials')")
    with pytest.raises(SourceError, match=r"^no credentials$"):
        load(host())


def test_the_request_reaches_the_source_as_it_is(install: Install, host: Callable[..., PluginHost]) -> None:
    install(fill(SOURCE, "return Skip(f'{request.org} {request.name} {request.revision} {request.offline}')"))
    one = host()
    answer = one.probe(load(one), ModelRequest("a/b", revision="v1", offline=True))
    assert answer == Skip("a b v1 True")


# validators


def validators(install: Install, source: str) -> None:
    install(source, group=discovery.PLUGINS)


BROKEN = {
    "raises at import": ("raise ValueError('sorry')", "ValueError: sorry"),
    "exits at import": ("raise SystemExit", "SystemExit"),
    "hangs at import": ("time.sleep(3)", "0.3 s"),
    "raises in the hook": ("@vllmrt.hookimpl\ndef vllmrt_validators():\n    raise OSError('x')", "OSError"),
    "yields None": ("@vllmrt.hookimpl\ndef vllmrt_validators():\n    yield None", "NoneType is no validator"),
    "yields no validator": ("@vllmrt.hookimpl\ndef vllmrt_validators():\n    yield object()", "object is no validator"),
    "has no name": (fill(VALIDATOR, "return ()").replace('name = "acme"', "pass"), "Acme is no validator"),
    "has a name that is no text": (
        fill(VALIDATOR, "return ()").replace('name = "acme"', "name = None"),
        "Acme is no validator",
    ),
    "has a name that raises": (
        fill(VALIDATOR, "return ()").replace('name = "acme"', "name = property(lambda self: 1 / 0)"),
        "",
    ),
    "has no check": (VALIDATOR.replace("def check", "def verify").format(check="..."), "Acme is no validator"),
    "a misspelt hook": (
        fill(VALIDATOR, "return ()").replace("vllmrt_validators", "vllmrt_validator"),
        "vllmrt_validator",
    ),
    "a misspelt argument": (fill(VALIDATOR, "return ()").replace("(settings)", "(config)"), "config"),
}


@pytest.mark.parametrize(("source", "part"), BROKEN.values(), ids=BROKEN)
def test_a_validator_that_cannot_be_loaded_stops_the_run(
    source: str, part: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    validators(install, source)
    with pytest.raises(PluginError) as caught:
        host().validators()
    blamed(caught, part)


FINDING = "Finding(Severity.ERROR, message='m', code='c')"
CHECKS = {
    "raises": ("raise ValueError('sorry')", "validator acme failed: ValueError: sorry"),
    "exits": ("raise SystemExit(0)", "SystemExit"),
    "returns None": ("return None", "acme"),
    "returns True": ("return True", "acme"),
    "returns a finding alone": (f"return {FINDING}", "acme"),
    "returns texts": ("return ['bad']", "a str, not a Finding"),
    "returns a text": ("return 'bad'", "a str, not a Finding"),
    "returns None in a list": ("return [None]", "a NoneType, not a Finding"),
    "returns a skip": ("return Skip('not me')", "Skip"),
    "a severity that is a text": ("return [Finding('error', message='m', code='c')]", "severity"),
    "a severity of another enum": ("return [Finding(Verdict.PROTECTED, message='m', code='c')]", "severity"),
    "a severity that is None": ("return [Finding(None, message='m', code='c')]", "severity"),
    "a message that is no text": ("return [Finding(Severity.ERROR, message=None, code='c')]", "message"),
}


@pytest.mark.parametrize(("body", "part"), CHECKS.values(), ids=CHECKS)
def test_a_validator_that_answers_wrongly_is_named_and_never_passes(
    body: str, part: str, install: Install, host: Callable[..., PluginHost]
) -> None:
    validators(install, fill(VALIDATOR, body))
    one = host()
    (guard,) = one.validators()
    with pytest.raises(VllmrtError) as caught:
        one.check(guard, TREE)
    blamed(caught, part)  # type: ignore[arg-type]


def test_findings_without_an_end_are_named_although_there_is_no_time_limit(
    install: Install, host: Callable[..., PluginHost]
) -> None:
    validators(install, fill(VALIDATOR, f"finding = {FINDING}\nwhile True: yield finding"))
    one = host()
    (guard,) = one.validators()
    with pytest.raises(PluginError) as caught:
        one.check(guard, TREE)
    blamed(caught, "OverflowError: more than 100,000 values")


def test_a_check_may_take_longer_than_any_other_call(install: Install, host: Callable[..., PluginHost]) -> None:
    validators(install, fill(VALIDATOR, f"time.sleep(.5)\nreturn [{FINDING}]"))
    one = host(plugin_timeout=0.1)
    (guard,) = one.validators()
    assert one.check(guard, TREE)


def test_a_class_instead_of_an_object_is_named_when_it_is_asked(
    install: Install, host: Callable[..., PluginHost]
) -> None:
    install(FINE.replace("yield Acme()", "yield Acme"))
    one = host()
    with pytest.raises(PluginError) as caught:
        one.probe(load(one), REQUEST)
    blamed(caught, "TypeError")


def test_a_name_that_changes_its_mind_after_loading_is_no_bug_of_ours(
    install: Install, host: Callable[..., PluginHost]
) -> None:
    body = """\
calls = []

    @property
    def name(self):
        self.calls.append(1)
        return "acme" if len(self.calls) < 2 else 1 / 0"""
    validators(install, fill(VALIDATOR, "return ()").replace('name = "acme"', body))
    one = host()
    with contextlib.suppress(PluginError):
        (guard,) = one.validators()
        assert one.check(guard, TREE) == ()


def test_a_validator_that_is_fine(install: Install, host: Callable[..., PluginHost]) -> None:
    validators(install, fill(VALIDATOR, f"return [{FINDING}]"))
    one = host()
    (guard,) = one.validators()
    assert isinstance(guard, Guard)
    assert guard.entry.owner == OWNER
    assert one.check(guard, TREE) == (Finding(Severity.ERROR, message="m", code="c"),)


def test_every_validator_is_asked(install: Install, host: Callable[..., PluginHost]) -> None:
    for distribution in ("One", "Two"):
        install(fill(VALIDATOR, "return ()"), group=discovery.PLUGINS, distribution=distribution)
    assert [guard.entry.distribution for guard in host().validators()] == ["one", "two"]


def test_without_any_validator_it_refuses(install: Install, host: Callable[..., PluginHost]) -> None:
    with pytest.raises(PluginError, match="no validator is installed"):
        host().validators()
    validators(install, "@vllmrt.hookimpl\ndef vllmrt_classify_process(process):\n    return None")
    with pytest.raises(PluginError, match="no validator is installed"):
        host().validators()


def test_without_the_cores_own_validators_it_refuses() -> None:
    with pytest.raises(PluginError, match="no validator is installed"):
        PluginHost(Settings(disable_plugins=("vllmrt",))).validators()


# names, clashes, disabling

LEAVES_A_MARK = "Path(__file__).with_suffix('.imported').touch()\n"


def imported(site: Path) -> set[str]:
    return {path.name.partition("_sources")[0] for path in site.glob("*.imported")}


@pytest.fixture
def clash(install: Install) -> None:
    for distribution in ("One_Kit", "Two.Kit"):
        install(LEAVES_A_MARK + FINE, distribution=distribution)


@pytest.mark.usefixtures("clash")
def test_two_distributions_that_claim_a_name_are_both_named(site: Path, host: Callable[..., PluginHost]) -> None:
    with pytest.raises(PluginError, match=r"acme is claimed by two plugins: one-kit 1.2.3 and two-kit 1.2.3") as caught:
        host().select(discovery.SOURCES, "acme")
    assert "VLLMRT_DISABLE_PLUGINS" in (caught.value.hint or "")
    assert imported(site) == set()


@pytest.fixture(params=["One_Kit", "one-kit", "ONE.KIT"])
def spelling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_clash_is_resolved_before_anything_is_imported(
    spelling: str, site: Path, host: Callable[..., PluginHost], install: Install
) -> None:
    for distribution in ("One_Kit", "Two_Kit"):
        install(LEAVES_A_MARK + FINE, distribution=distribution)
    one = host(disable_plugins=(spelling,))
    assert load(one).entry.distribution == "two-kit"
    assert imported(site) == {"two_kit"}


def test_a_clash_of_names_that_are_not_selected_does_no_harm(install: Install, host: Callable[..., PluginHost]) -> None:
    for distribution in ("One", "Two"):
        install(FINE, distribution=distribution)
    install(FINE.replace('"acme"', '"fine"'), name="fine", distribution="Fine")
    assert load(host(), "fine").object.name == "fine"


def test_a_source_and_a_validator_may_share_a_name(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE, distribution="One")
    install(fill(VALIDATOR, "return ()"), group=discovery.PLUGINS, distribution="Two")
    assert load(host()).entry.distribution == "one"


def test_what_is_disabled_is_never_imported_and_not_installed(
    install: Install, site: Path, host: Callable[..., PluginHost]
) -> None:
    install(LEAVES_A_MARK + FINE)
    one = host(disable_plugins=("acme-kit",))
    assert one.installed(discovery.SOURCES) == []
    assert one.select(discovery.SOURCES, "acme") is None
    assert imported(site) == set()


def test_a_source_that_is_not_named_is_not_imported(
    install: Install, site: Path, host: Callable[..., PluginHost]
) -> None:
    install(LEAVES_A_MARK + FINE)
    install(LEAVES_A_MARK + FINE.replace('"acme"', '"other"'), name="other", distribution="Other")
    load(host())
    assert imported(site) == {"acme_kit"}


def test_an_unknown_source_lists_what_is_installed(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE)
    install(FINE, name="zebra", distribution="Zebra")
    with pytest.raises(ConfigError) as caught:
        host().require(discovery.SOURCES, ["acme", "acmee", "\x1b[31m"])
    message = str(caught.value)
    assert "'acmee', '\\x1b[31m'; installed: acme, zebra" in message
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_without_any_source_it_says_none(host: Callable[..., PluginHost]) -> None:
    with pytest.raises(ConfigError, match="installed: none"):
        host().require(discovery.SOURCES, ["local"])


def test_names_that_are_installed_pass(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE)
    host().require(discovery.SOURCES, ["acme"])


def test_a_name_is_matched_exactly(install: Install, host: Callable[..., PluginHost]) -> None:
    install(FINE)
    assert host().select(discovery.SOURCES, "Acme") is None
    assert host().select(discovery.PLUGINS, "acme") is None


def test_two_hosts_share_nothing(install: Install, host: Callable[..., PluginHost]) -> None:
    install(
        fill(SOURCE, "return Skip(str(self.port))").replace(
            "yield Acme()", "a = Acme(); a.port = settings.port; yield a"
        )
    )
    one, two = host(port=1), host(port=2)
    first, second = load(one), load(two)
    assert one.probe(first, REQUEST) == Skip("1")
    assert two.probe(second, REQUEST) == Skip("2")
