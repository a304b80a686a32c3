"""The graph finds dependence that was planted, and none between features that have nothing to do with each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import networkx
import numpy as np
import pytest
from support.recordings.made import step_of

from actscope.analysis import GraphOptions, Node, feature_graph, load_features
from actscope.analysis.dependence import Series, _scores, dependence
from actscope.errors import RecordingError, SettingsError
from actscope.frames import Frame
from actscope.probes import Probe, ProbeInfo, save_probe
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder


def chain(rng: np.random.Generator, n: int, rate: float, stay: float) -> np.ndarray:
    """A binary series with a rhythm of its own: it stays on with `stay`."""
    draws, x = rng.random(n), np.zeros(n, bool)
    for t in range(1, n):
        x[t] = draws[t] < (stay + (1 - stay) * rate if x[t - 1] else (1 - stay) * rate)
    return x


def requests_of(rng: np.random.Generator, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    request = np.repeat(np.arange(n), rng.integers(20, 120, n))
    return request, np.append(True, request[1:] != request[:-1])


def nodes_of(*sizes: int) -> list[list[Node]]:
    return [[Node(f"{s}/{i}", str(s), "", str(i), 0, 0) for i in range(size)] for s, size in enumerate(sizes)]


DEPTHS = [(0.0, 3), (1.0, 3)]


def test_independent_features_with_rhythms_of_their_own_have_no_edges() -> None:
    """Four graphs of 16 + 16 features: runs of firing would make an ordinary test see edges everywhere."""
    edges = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        request, begins = requests_of(rng)
        fires = [
            np.stack(
                [chain(rng, len(request), 10 ** rng.uniform(-2, -0.4), rng.uniform(0, 0.8)) for _ in range(16)], axis=1
            )
            for _ in range(2)
        ]
        tested, found = dependence(Series(fires, begins, request), DEPTHS, nodes_of(16, 16), GraphOptions())
        assert tested == 16 * 16 + 4 * 16 * 16 - 2 * 16
        edges += len(found)
    assert edges <= 2


def test_planted_dependence_is_found_with_its_direction_its_lag_and_its_sign() -> None:
    rng = np.random.default_rng(1)
    request, begins = requests_of(rng, 30)
    n = len(request)
    early = np.stack([chain(rng, n, 0.1, 0.3) for _ in range(8)], axis=1)
    late = np.stack([chain(rng, n, 0.1, 0.3) for _ in range(8)], axis=1)
    late[:, 0] |= early[:, 0] & (rng.random(n) < 0.5)  # the same token, a later site
    late[1:, 1] |= early[:-1, 1] & (rng.random(n - 1) < 0.5)  # the next token
    late[:, 2] = chain(rng, n, 0.4, 0) & ~early[:, 2]  # avoids it
    _, found = dependence(Series([early, late], begins, request), DEPTHS, nodes_of(8, 8), GraphOptions())
    planted = {("0/0", "1/0", 0): 1, ("0/1", "1/1", 1): 1, ("0/2", "1/2", 0): -1}
    seen = {(e.source, e.target, e.lag): e for e in found}
    assert planted.keys() <= seen.keys()
    for key, sign in planted.items():
        edge = seen[key]
        assert np.sign(edge.phi) == sign and np.sign(edge.pmi) == sign
        assert edge.q <= 0.05 and edge.z > 5 and edge.te > 0.01
    strongest = [(e.source, e.target, e.lag) for e in found[:3]]
    assert set(strongest) == set(planted)
    others = [e for e in found if (e.source, e.target, e.lag) not in planted]
    related = {
        frozenset(key[:2]) for key in planted
    }  # e.g. the planted pair one token later, by the source's own rhythm
    assert len([e for e in others if frozenset((e.source, e.target)) not in related]) <= 1


def test_features_that_only_share_what_a_request_is_about_have_no_edge() -> None:
    """Two that fire at random times within the same half of the requests: strongly correlated, and rightly no edge."""
    rng = np.random.default_rng(2)
    request, begins = requests_of(rng, 40)
    topic = (request % 2 == 0)[:, None]
    fires = [(rng.random((len(request), 4)) < 0.4) & topic for _ in range(2)]
    assert np.corrcoef(fires[0][:, 0], fires[1][:, 0])[0, 1] > 0.2
    _, found = dependence(Series(fires, begins, request), DEPTHS, nodes_of(4, 4), GraphOptions())
    assert found == []


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_scores_are_those_of_counting_one_by_one(lag: int) -> None:
    rng = np.random.default_rng(3)
    request, begins = requests_of(rng, 5)
    x, y = rng.random((len(request), 2)) < 0.3, rng.random((len(request), 3)) < 0.4
    y[:, 0] |= x[:, 0]
    found = _scores(Series([x, y], begins, request), x, y, lag)
    for i in range(2):
        for j in range(3):
            triples = [
                (bool(x[t - lag, i]), bool(y[t, j]), bool(y[t - 1, j]))
                for t in range(len(request))
                if t >= max(lag, 1) and request[t - max(lag, 1)] == request[t]
            ]
            n, counts = len(triples), Counter(triples)
            information = sum(
                c / n * np.log2(
                    c * sum(v for k, v in counts.items() if k[2] == last)
                    / sum(v for k, v in counts.items() if (k[0], k[2]) == (a, last))
                    / sum(v for k, v in counts.items() if (k[1], k[2]) == (b, last))
                )
                for (a, b, last), c in counts.items()
            )  # fmt: skip
            assert found.te[i, j] == pytest.approx(information)
            a, b = np.array([t[0] for t in triples]), np.array([t[1] for t in triples])
            assert found.together[i, j] == (a & b).sum()
            assert found.phi[i, j] == pytest.approx(np.corrcoef(a, b)[0, 1])
            assert found.pmi[i, j] == pytest.approx(np.log2((a & b).mean() / a.mean() / b.mean()))


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Recording, list[str]]:
    """A recording in which dimension 0 of a later site follows dimension 0 of an earlier one, and probes that read dimensions."""
    rng = np.random.default_rng(4)
    sites = ("layers.3.resid_post", "layers.1.resid_post")  # recorded in this order; the second is the earlier one
    with Recorder.create(tmp_path / "rec", RecordingSpec(sites, codec="none")) as recorder:
        for number in range(1, 26):
            early = (rng.random((80, 4)) < 0.15).astype(np.float32)
            late = (rng.random((80, 4)) < 0.15).astype(np.float32)
            late[:, 0] = np.maximum(late[:, 0], early[:, 0] * (rng.random(80) < 0.6))
            step = step_of(number, [(f"r{number}", 0, 80)])
            recorder.write(step, [Frame(sites[0], late), Frame(sites[1], early)])
    for site in sites:
        for dimension in range(4):
            name = f"{site.split('.')[1]}-{dimension}"
            vector = np.eye(4, dtype=np.float32)[dimension]
            save_probe(Probe(ProbeInfo(id=name, site=site), vector), tmp_path / "probes" / f"{name}.safetensors")
    return Recording.open(tmp_path / "rec"), [str(tmp_path / "probes")]


def test_a_recordings_graph_goes_from_the_earlier_layer_to_the_later_and_says_it_is_no_causation(
    planted: tuple[Recording, list[str]], tmp_path: Path
) -> None:
    recording, sources = planted
    sets = [features for source in sources for features in load_features(recording, source)]
    graph = feature_graph(recording, sets, GraphOptions())
    assert graph.tokens == 2000 and len(graph.nodes) == 8
    assert [(e.source.split("/")[-1], e.target.split("/")[-1], e.lag) for e in graph.edges] == [("1-0", "3-0", 0)]
    files = graph.save(tmp_path)
    assert "not causation" in msgspec.json.decode(files[0].read_bytes())["note"]
    read = networkx.read_graphml(files[1])
    assert "not causation" in read.graph["note"]
    assert set(read.nodes) == {node.id for node in graph.nodes}
    ((source, target, kept),) = read.edges(data=True)
    assert (read.nodes[source]["site"], read.nodes[target]["site"]) == ("layers.1.resid_post", "layers.3.resid_post")
    assert kept["te"] == pytest.approx(graph.edges[0].te) and kept["together"] == graph.edges[0].together


def test_whole_requests_are_taken_until_there_are_enough_tokens(planted: tuple[Recording, list[str]]) -> None:
    recording, sources = planted
    sets = load_features(recording, sources[0])
    assert feature_graph(recording, sets, GraphOptions(tokens=500, permutations=20)).tokens == 560
    assert feature_graph(recording, sets, GraphOptions(min_fired=10_000, permutations=20)).nodes == []


def test_sites_without_a_common_token_and_bad_options_are_refused(tmp_path: Path) -> None:
    with Recorder.create(tmp_path / "rec", RecordingSpec(("embed", "final_norm"), codec="none")) as recorder:
        for number, site in enumerate(("embed", "final_norm"), 1):
            recorder.write(step_of(number, [(site, 0, 5)]), [Frame(site, np.ones((5, 4), np.float32))])
    for site in ("embed", "final_norm"):
        save_probe(Probe(ProbeInfo(id=site, site=site), np.ones(4, np.float32)), tmp_path / "p" / f"{site}.safetensors")
    recording = Recording.open(tmp_path / "rec")
    with pytest.raises(RecordingError, match="no token has rows at all of embed, final_norm"):
        feature_graph(recording, load_features(recording, str(tmp_path / "p")))
    with pytest.raises(SettingsError, match="at least 20 permutations"):
        GraphOptions(permutations=5)
    many = [np.zeros((10, 500), bool)] * 2
    series = Series(many, np.ones(10, bool), np.zeros(10, np.int64))
    with pytest.raises(SettingsError, match="more than 400000: choose fewer nodes"):
        dependence(series, DEPTHS, nodes_of(500, 500), GraphOptions())
