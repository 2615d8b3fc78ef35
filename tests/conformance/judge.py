"""judge.py RESULT CHOSEN: compares the conformance runner's output with the list of chosen differences.

Fails on a difference that is not listed or came out otherwise, on a listed one that is gone (if its case ran), on an
entry that is not narrower or names no ADR, and on a run that did not come to its end. `judge.py` alone tests itself.
"""
import ast
import glob
import os
import re
import sys
import tempfile

import yaml

# What a client sees of a refusal. Another status may come from the application.
REFUSALS = {"401", "403", "tls-refused", "reset"}
FIELDS = {"case", "request", "ours", "object", "adr"}


class Wrong(Exception):
    """What is wrong with the list or the run."""


def chosen(text, root):
    """The entries by (case, request)."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or set(content) != {"differences"} or not isinstance(content["differences"], list):
        raise Wrong("the list is not `differences: [...]`")
    entries = {}
    for entry in content["differences"]:
        if not isinstance(entry, dict) or set(entry) != FIELDS or not all(entry.values()):
            raise Wrong(f"{entry}: an entry has exactly these fields: {', '.join(sorted(FIELDS))}")
        name = (entry["case"], entry["request"])
        if entry["ours"] not in REFUSALS:
            raise Wrong(f"{name}: {entry['ours']!r} is no refusal; a chosen difference is narrower")
        if not isinstance(entry["adr"], int) or not glob.glob(os.path.join(root, f"docs/adr/{entry['adr']:04}-*.md")):
            raise Wrong(f"{name}: there is no ADR {entry['adr']}")
        if name in entries:
            raise Wrong(f"{name} is listed twice")
        entries[name] = entry
    return entries


def decision(text):
    """What a request came to, with or without what was observed beside it."""
    if text.startswith("{"):
        return ast.literal_eval(text)["decision"]
    return text


def judge(result, entries):
    """Complaints, and how many differences were chosen."""
    total = re.search(r"^(\d+) passed, (\d+) failed$", result, re.M)
    if not total:
        raise Wrong("the run did not come to its end")
    ran = set(re.findall(r"^(\S+): in force after ", result, re.M))
    different = re.findall(r"^(\S+) (\S+): expected (.*), got (.*)$", result, re.M)
    if len(different) != int(total[2]):
        raise Wrong(f"{total[2]} failed, but {len(different)} differences were printed")
    if not int(total[1]):
        raise Wrong("nothing was compared")
    complaints, seen = [], set()
    for case, request, expected, got in different:
        entry = entries.get((case, request))
        seen.add((case, request))
        if entry is None:
            complaints.append(f"{case} {request}: expected {expected}, got {got}")
        elif decision(got) != entry["ours"]:
            complaints.append(f"{case} {request}: {got}, and not {entry['ours']} as was chosen")
        elif decision(expected) != "allowed":
            complaints.append(f"{case} {request}: refused elsewhere as well ({expected}): that is not narrower")
    gone = [name for name in entries if name[0] in ran and name not in seen]
    complaints += [f"{case} {request} no longer differs: take it off the list" for case, request in gone]
    return complaints, len(different) - len([d for d in different if (d[0], d[1]) not in entries]), total


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        with open(sys.argv[2], encoding="utf-8") as file:
            entries = chosen(file.read(), root)
        with open(sys.argv[1], encoding="utf-8") as file:
            complaints, known, total = judge(file.read(), entries)
    except Wrong as wrong:
        sys.exit(f"conformance: {wrong}")
    for complaint in complaints:
        print(f"conformance: {complaint}")
    print(f"conformance: {total[1]} passed, {total[2]} failed, {known} of them chosen")
    sys.exit(1 if complaints else 0)


def test():
    """The rules above, each broken once."""
    head, end = "c/1: in force after 0.1s, 2 requests in 0.1s\n", "3 passed, 1 failed\n"
    narrower, clean = head + "c/1 a: expected allowed, got 403\n" + end, head + "4 passed, 0 failed\n"
    entry = "differences: [{case: c/1, request: a, ours: '403', object: AuthorizationPolicy foo/a, adr: 6}]"
    observed = "c/1 a: expected {'decision': 'allowed', 'seen': {}}, got {'decision': '403', 'seen': {}}\n"
    rows = [
        ("no difference", "differences: []", clean, True),
        ("a chosen one", entry, narrower, True),
        ("a chosen one with what was observed", entry, head + observed + end, True),
        ("one that is not listed", "differences: []", narrower, False),
        ("one that is gone", entry, clean, False),
        ("one whose case did not run", entry, "4 passed, 0 failed\n", True),
        ("another refusal", entry, narrower.replace("403", "401"), False),
        ("the listed one admits after all", entry, head + "c/1 a: expected 403, got allowed\n" + end, False),
        ("refused elsewhere as well", entry, head + "c/1 a: expected 401, got 403\n" + end, False),
        ("wider", entry.replace("'403'", "allowed"), narrower, False),
        ("another status", entry.replace("'403'", "'404'"), narrower, False),
        ("without ADR", entry.replace(", adr: 6", ""), narrower, False),
        ("an ADR that is none", entry.replace("adr: 6", "adr: 999"), narrower, False),
        ("without the object", entry.replace("object: AuthorizationPolicy foo/a, ", ""), narrower, False),
        ("wildcards", entry.replace("request: a", "request: '*'"), narrower, False),
        ("listed twice", entry[:-1] + ", " + entry.split("[")[1], narrower, False),
        ("a run that broke off", "differences: []", head, False),
        ("a run of nothing", "differences: []", head + "0 passed, 0 failed\n", False),
        ("no list", "", clean, False),
    ]
    with tempfile.TemporaryDirectory() as root:
        os.makedirs(os.path.join(root, "docs/adr"))
        open(os.path.join(root, "docs/adr/0006-x.md"), "w", encoding="utf-8").close()
        for name, text, result, good in rows:
            try:
                complaints = judge(result, chosen(text, root))[0]
            except Wrong as wrong:
                complaints = [str(wrong)]
            assert (not complaints) == good, f"{name}: {complaints}"
    print(f"judge.py: {len(rows)} rows")


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else test()
