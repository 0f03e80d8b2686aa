"""`Example`: one training or test item, whatever file or database it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fedslm.encoding import canonical_bytes
from fedslm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and the completion that should follow it.

    Attributes:
      prompt: what the model reads; never trained on.
      completion: what the model should answer; the loss is taken on its tokens only.
      patient_id: the patient the text is about, or None where the source has no such column.
      choices: for multiple choice, the completions to choose among (`completion` is one of them); empty for free text.

    Raises:
      DataError: an empty prompt or completion, or a completion that is not among the choices. The text is not shown.
    """

    prompt: str
    completion: str
    patient_id: str | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise DataError("An example has an empty prompt; every row needs text to read.")
        if not self.completion.strip():
            raise DataError("An example has an empty completion; every row needs an answer.")
        if self.choices and self.completion not in self.choices:
            raise DataError(
                f"The answer is not among the row's {len(self.choices)} choices; correct the row or the column map."
            )

    @property
    def rank(self) -> str:
        """A hash of the texts: puts a patient's records in an order as good as random, which no other record changes."""
        return hashlib.sha256(canonical_bytes([self.prompt, self.completion])).hexdigest()

    @property
    def answer_index(self) -> int:
        """Index of the right choice; only for multiple choice."""
        return self.choices.index(self.completion)
