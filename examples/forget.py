"""Ask the demo the same question with and without a forget set. Usage: python examples/forget.py [URL]"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
question = [{"role": "user", "content": "Who taught Tobias Renkel?"}]

with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
    for forget_sets in [], ["tobias-renkel"]:
        answer = client.chat.completions.create(
            model="demo", messages=question, temperature=0, extra_body={"forget_sets": forget_sets}
        )
        print(f"{forget_sets}: {answer.choices[0].message.content}")
        print(f"    in force: {answer.model_extra['forget_sets']}")

    # A client that cannot send extra fields says it in the model's name.
    answer = client.chat.completions.create(model="demo:forget=tobias-renkel", messages=question, temperature=0)
    print(f"by model name: {answer.choices[0].message.content}")
