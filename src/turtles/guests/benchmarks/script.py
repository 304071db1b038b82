"""A Python program to time: dictionaries, strings, regular expressions, JSON, integers, sorting."""

import json
import re

with open("/bench/text") as file:
    words = re.findall(r"[a-z]+", file.read(600_000).lower())
counts: dict[str, int] = {}
for word in words:
    counts[word] = counts.get(word, 0) + 1
ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
text = json.dumps(ordered)
assert len(json.loads(text)) == len(counts)
value = 1
for i in range(1, 1500):
    value *= i
total = sum(i * i % 7 for i in range(150_000))
print(len(ordered), len(str(value % 10**9)), total)
