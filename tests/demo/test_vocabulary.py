"""The vocabulary: enough subjects, no ambiguous name, held-out pairs that leave every word trained."""

from sd35.demo.vocabulary import Vocabulary, load_vocabulary


def test_sizes() -> None:
    """At least 300 subjects, three styles, ten backgrounds."""
    vocabulary = load_vocabulary()
    assert len(vocabulary.subjects) >= 300
    assert len(vocabulary.styles) == 3
    assert len(vocabulary.colours) == 10


def test_every_name_means_one_thing() -> None:
    """No name or synonym belongs to two subjects, to two styles or to two colours."""
    vocabulary = load_vocabulary()
    for rows in (vocabulary.subjects, vocabulary.styles, vocabulary.colours):
        names = [name.lower() for row in rows for name in (row.name, *row.aliases)]
        assert len(names) == len(set(names))


def test_icons_are_distinct() -> None:
    """No two subjects are drawn from one icon."""
    icons = [subject.icon for subject in load_vocabulary().subjects]
    assert len(icons) == len(set(icons))


def test_held_out_share() -> None:
    """About 15 percent of the pairs are held out, spread over the styles."""
    vocabulary = load_vocabulary()
    assert 0.14 <= len(vocabulary.held_out) / len(vocabulary.pairs()) <= 0.16
    assert {style for _, style in vocabulary.held_out} == {0, 1, 2}


def test_every_subject_and_style_is_trained() -> None:
    """Each subject keeps at least two trained styles, each style most subjects."""
    vocabulary = load_vocabulary()
    trained = vocabulary.trained_pairs()
    assert _fewest(vocabulary, trained) >= 2
    assert all(sum(style == j for _, j in trained) > 300 for style in range(3))


def _fewest(vocabulary: Vocabulary, trained: list[tuple[int, int]]) -> int:
    return min(sum(subject == i for i, _ in trained) for subject in range(len(vocabulary.subjects)))


def test_colours_are_far_apart() -> None:
    """Any two backgrounds differ by at least 40 levels in some channel, so a judge can tell them."""
    colours = load_vocabulary().colours
    for index, one in enumerate(colours):
        for other in colours[index + 1 :]:
            assert max(abs(a - b) for a, b in zip(one.rgb, other.rgb, strict=True)) >= 40, (one, other)
