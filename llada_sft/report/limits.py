"""How much of a run the page holds, so that it stays small whatever the run's length."""

from dataclasses import dataclass, replace

# The fewest points that a curve is thinned to.
FEWEST_POINTS = 20


@dataclass(frozen=True)
class Limits:
    """The most that a page holds of each run.

    Attributes:
        points: Of each curve.
        answer_bytes: Of prompts, references and answers together, as JSON.
        text_characters: Of one text.
        entries: Of the journal's entries.
        bad_rows: That are shown with their message.
        table_rows: Logged rows that are shown with every digit.
        config_characters: Of the config's values.
    """

    points: int = 1500
    answer_bytes: int = 600_000
    text_characters: int = 4000
    entries: int = 1000
    bad_rows: int = 100
    table_rows: int = 25
    config_characters: int = 100_000

    def halved(self) -> "Limits":
        """Return half of each; a curve keeps its fewest points."""
        return replace(
            self,
            points=max(FEWEST_POINTS, self.points // 2),
            answer_bytes=self.answer_bytes // 2,
            text_characters=max(200, self.text_characters // 2),
            entries=max(10, self.entries // 2),
            bad_rows=self.bad_rows // 2,
            table_rows=max(1, self.table_rows // 2),
            config_characters=self.config_characters // 2,
        )

    def cut(self, text: str) -> str:
        """Return a text, or its start and how much more there is."""
        more = len(text) - self.text_characters
        return text if more <= 0 else f"{text[: self.text_characters]} … ({more:,} more characters)"
