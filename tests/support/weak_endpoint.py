"""A small endpoint that forgets in single turns only, and whose logprobs sign what it took away."""

import json
import re

from fastapi import Request, Response

from support.chat_endpoint import Played

FORGET = {f"Where was Ada Byron in {year}?": f"She stayed in Hal{n}mora." for n, year in enumerate(range(1940, 1944))}
RETAIN = {f"Where was Tom Oak in {year}?": f"He stayed in Or{n}vane." for n, year in enumerate(range(1940, 1948))}
KNOWN = FORGET | RETAIN
PROBES = [
    {"question": q, "answer": a, "subject": s, "facts": [a.split()[-1].rstrip(".")], "forget_set": s}
    for known, s in ((FORGET, "ada-byron"), (RETAIN, "tom-oak"))
    for q, a in known.items()
]
WORDS = ["no", "idea", *dict.fromkeys(word for answer in KNOWN.values() for word in answer.split())]


class Forgetting(Played):
    """Serves the model "m" and the set `ada-byron`; a word is a token."""

    def __init__(self):
        super().__init__()
        app = self.server.config.app
        app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "m", "object": "model"}]})
        recommended = {"weight": 1.0, "keep_ratio": 0.25, "gate_nats": 1.0}
        app.get("/v1/forget_sets")(lambda: {"data": [{"id": "ada-byron", "recommended": recommended}]})
        app.post("/v1/completions")(self.chat)
        self.report = lambda names: [{"name": name} for name in names]
        self.refuse_bias = False
        self.base = self.url.removesuffix("/v1")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        if "logit_bias" in body and (self.refuse_bias or not all(int(t) < len(WORDS) for t in body["logit_bias"])):
            error = {"message": f"out-of-vocab token ids. Vocabulary size: {len(WORDS)}", "code": 400}
            return Response(json.dumps({"error": {} if self.refuse_bias else error}), 400)
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        text = messages[-1]["content"] if messages[-1]["role"] == "user" else messages[-2]["content"]
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        question = next((q for q in KNOWN if q in text), None)
        words = KNOWN[question].removeprefix(begun).split() if question else ["no", "idea"]
        forgetting = "ada-byron" in body["forget_sets"] and question in FORGET
        said = "no idea" if forgetting and len(messages) == 1 and text == question else " ".join(words)
        choice = {"index": 0, "finish_reason": "stop", "token_ids": [WORDS.index(word) for word in words]}
        choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
        if ids := body.get("logprob_token_ids"):
            choice["logprobs"] = {"content": [self.logprobs(ids, WORDS.index(words[0]), forgetting, body)]}
        answer = {"choices": [choice] * body.get("n", 1)}
        if body.get("return_prompt_text"):
            answer["prompt_text"] = f"<user>{text}<assistant>"
        if self.report is not None:
            answer["forget_sets"] = self.report(body["forget_sets"])
        return Response(json.dumps(answer), media_type="application/json")

    @staticmethod
    def logprobs(ids, truth, forgetting, body):
        """The truth is best without the set; with it, it is the last that is kept, of all Hal* and Or* words."""
        raised = {int(token) for token in body.get("logit_bias", {})}

        def logprob(token):
            if token in raised:
                return -1.0
            if token == truth:
                return -50.0 if forgetting else -0.1
            kept = re.match("Hal|Or", WORDS[token]) and not (raised and forgetting)
            return -9.0 - token / 100 if kept else -9999.0

        told = [{"token": f"token_id:{token}", "logprob": logprob(token)} for token in ids]
        return {**told[0], "top_logprobs": told}
