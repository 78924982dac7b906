"""Write `messages.md` anew."""

from tests.messages.collect import document, messages
from tests.messages.test_messages import GOLDEN

GOLDEN.write_text(document(messages()), "utf-8")
print(f"wrote {GOLDEN}; read it as prose before you commit it")
