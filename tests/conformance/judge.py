"""judge.py RESULT KNOWN: compares the conformance runner's output with the list of known differences.

A line of KNOWN is `CASE REQUEST  # why`, both with shell wildcards. Fails on a difference that is not listed, on a listed
one that is gone (if its case ran), and on a run that did not come to its end.
"""
import fnmatch
import re
import sys


def known(path):
    for line in open(path, encoding="utf-8"):
        words = line.split("#", 1)[0].split()
        if len(words) == 2:
            yield tuple(words)
        elif words:
            sys.exit(f"{path}: not CASE REQUEST: {line.rstrip()}")


def main():
    result, listed = open(sys.argv[1], encoding="utf-8").read(), list(known(sys.argv[2]))
    total = re.search(r"^(\d+) passed, (\d+) failed$", result, re.M)
    if not total:
        sys.exit("conformance: the run did not come to its end")
    ran = set(re.findall(r"^(\S+): in force after ", result, re.M))
    different = re.findall(r"^(\S+) (\S+): expected .*$", result, re.M)
    match = lambda entry, seen: all(fnmatch.fnmatch(s, e) for e, s in zip(entry, seen))
    fresh = [d for d in different if not any(match(entry, d) for entry in listed)]
    gone = [e for e in listed if any(fnmatch.fnmatch(case, e[0]) for case in ran) and not any(match(e, d) for d in different)]
    for case, request in fresh:
        print(f"conformance: {case} {request} differs and is not listed in {sys.argv[2]}")
    for case, request in gone:
        print(f"conformance: {case} {request} is listed in {sys.argv[2]} and no longer differs: remove it")
    if len(different) != int(total[2]):
        sys.exit(f"conformance: {total[2]} failed, but {len(different)} differences were printed")
    if not int(total[1]):
        sys.exit("conformance: nothing was compared")
    print(f"conformance: {total[1]} passed, {total[2]} failed, {len(different) - len(fresh)} of them known")
    sys.exit(1 if fresh or gone else 0)


if __name__ == "__main__":
    main()
