#!/usr/bin/env python3
"""Becomes a program under a seccomp profile of OCI's form, as a container runtime has it: by libseccomp, rule by rule.

usage: under_profile.py PROFILE PROGRAM ARGS...

Exit codes: 125 when the profile cannot be applied, 127 when PROGRAM cannot be started.
"""
import ctypes, json, os, sys

ERRNO, ALLOW = 0x00050000, 0x7FFF0000
UNKNOWN = -1
COMPARE = {f"SCMP_CMP_{name}": op for op, name in enumerate(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"], 1)}


class Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(rule, number):
    return {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": ERRNO | number}[rule]


def check(what, result, *fine):
    if result not in (0, *fine):
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def apply(profile):
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(action(profile["defaultAction"], profile["defaultErrnoRet"])))
    if not context:
        raise OSError("seccomp_init failed")
    exists = -17
    for architecture in profile["architectures"]:
        token = library.seccomp_arch_resolve_name(architecture.removeprefix("SCMP_ARCH_").lower().encode())
        # Our own is there from the start.
        check(architecture, library.seccomp_arch_add(context, token), exists)
    for rule in profile["syscalls"]:
        arguments = [Argument(a["index"], COMPARE[a["op"]], a["value"], a.get("valueTwo", 0)) for a in rule.get("args", [])]
        array = (Argument * len(arguments))(*arguments)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            # Newer than this libseccomp: what it does not know stays forbidden, as under a runtime.
            if number != UNKNOWN:
                done = library.seccomp_rule_add_array(
                    context, action(rule["action"], rule.get("errnoRet", 1)), number, len(arguments), array
                )
                check(name, done)
    check("seccomp_load", library.seccomp_load(context))


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        with open(sys.argv[1]) as file:
            apply(json.load(file))
    except (OSError, KeyError, ValueError) as error:
        print(f"{sys.argv[1]}: {error!r}", file=sys.stderr)
        sys.exit(125)
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(f"{sys.argv[2]}: {error}", file=sys.stderr)
        sys.exit(127)


main()
