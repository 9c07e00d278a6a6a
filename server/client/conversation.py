"""What was said in a chat, as the server is told it."""

from dataclasses import dataclass, field

Message = dict[str, str]


@dataclass(slots=True)
class Conversation:
    """Messages so far.

    Attributes:
        system: what the model is told before all else; nothing if empty.
    """

    system: str = ""
    _turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """As a request has them."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self._turns]

    def ask(self, text: str) -> None:
        """The user's turn."""
        self._turns.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """The model's, whole or as much as there is. Without a word the user's is forgotten: templates want turns to alternate."""
        if text:
            self._turns.append({"role": "assistant", "content": text})
        else:
            self._turns.pop()

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()
