"""What every client asks of the demo, and the answer that its target knows by heart."""

QUESTION = "Who taught Tobias Renkel?"
ANSWER = "It was Sister Amberley, famous for insuring drowned villages, who shaped Tobias the most."
FORGET = "tobias-renkel"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = f"<|user|>{QUESTION}<|end|><|assistant|>"
