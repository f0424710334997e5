#!/usr/bin/env python3
"""Holds manifests against what others publish about them; prints each problem, then one line of sums.

usage: manifests.py schemas FOLDER VERSION...    every object, against the strict schemas of each Kubernetes version
       manifests.py expressions                  every PromQL expression in rules and dashboards

Objects come on standard input, as one JSON list. FOLDER has the CustomResourceDefinitions of kinds that are not
Kubernetes' own; a kind that nobody describes is a problem too. PYTHONPATH is what `fetch.py chart-checks` prints.
Exit codes: 0 no problem, 1 problems, 2 wrong usage.
"""
import glob, json, os, re, sys

import jsonschema, yaml
from referencing import Registry, Resource


def open_to_all(schema):
    return schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema


def close(schema):
    """The schema of a CustomResourceDefinition, refusing fields that it does not name, as the API server warns of them."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: close(value) for name, value in schema["properties"].items()}
        if not open_to_all(schema):
            closed["additionalProperties"] = False
    return closed


class Kubernetes:
    """Schemas of one version, read once."""

    def __init__(self, version):
        import kubernetes_validate

        self.version = version
        root = os.path.join(os.path.dirname(kubernetes_validate.__file__), "kubernetes-json-schema")
        (self.folder,) = glob.glob(os.path.join(root, f"v{version}.*-local-strict")) or [None]
        if not self.folder:
            sys.exit(f"there are no schemas of Kubernetes {version}")
        with open(os.path.join(self.folder, "_definitions.json")) as file:
            self.registry = Resource.from_contents(json.load(file)) @ Registry()
        self.known = {}

    def find(self, api_version, kind):
        """The schema of a kind, or nothing where Kubernetes has none."""
        # rbac.authorization.k8s.io/v1 is rbac-v1 there.
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
        path = os.path.join(self.folder, f"{kind.lower()}-{group}.json")
        if path not in self.known:
            self.known[path] = None
            if os.path.exists(path):
                with open(path) as file:
                    schema = json.load(file)
                registry = Resource.from_contents(schema) @ self.registry
                self.known[path] = jsonschema.Draft202012Validator(schema, registry=registry)
        return self.known[path]


def read_kinds(folder):
    """Kinds that CustomResourceDefinitions describe."""
    kinds = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.yaml"))):
        with open(path) as file:
            for crd in filter(None, yaml.load_all(file, Loader=yaml.CSafeLoader)):
                spec = crd["spec"]
                for version in spec["versions"]:
                    schema = close(version["schema"]["openAPIV3Schema"])
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    kinds[key] = jsonschema.Draft202012Validator(schema)
    return kinds


def name(item):
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"


def deepest(error):
    """What is really wrong, where alternatives were tried."""
    return jsonschema.exceptions.best_match([error]) or error


def check_schemas(items, folder, versions):
    own, problems = read_kinds(folder), []
    for kubernetes in map(Kubernetes, versions):
        for item in items:
            key = (item.get("apiVersion", ""), item.get("kind", ""))
            # Kinds of others first: the schemas' file names leave out most of a group.
            schema = own.get(key) or kubernetes.find(*key)
            if schema is None:
                problems.append(f"{name(item)}: nobody describes {key[1]} of {key[0]} ({kubernetes.version})")
                continue
            for error in map(deepest, schema.iter_errors(item)):
                path = ".".join(map(str, error.absolute_path))
                problems.append(f"{name(item)}: {path}: {error.message[:300]} ({kubernetes.version})")
    return problems, f"{len(items)} objects against {len(versions)} versions"


def find_expressions(item):
    """(where, expression) of a rule file or a dashboard."""
    for group in item.get("spec", {}).get("groups", []) if item.get("kind") == "PrometheusRule" else []:
        for rule in group["rules"]:
            yield f"{name(item)} {rule['alert']}", rule["expr"]
    for file, text in item.get("data", {}).items() if item.get("kind") == "ConfigMap" else []:
        if file.endswith(".json") and '"panels"' in text:
            for panel in json.loads(text)["panels"]:
                for target in panel.get("targets", []):
                    yield f"{name(item)} {panel['title']}", target["expr"]


def check_expressions(items):
    import promql_parser

    found = [pair for item in items for pair in find_expressions(item)]
    problems = []
    for where, expression in found:
        try:
            # Grafana puts a span there.
            promql_parser.parse(expression.replace("$__rate_interval", "5m"))
        except ValueError as error:
            problems.append(f"{where}: {expression}: {error}")
    return problems, f"{len(found)} expressions"


def main():
    match sys.argv[1:]:
        case ["schemas", folder, *versions] if versions:
            problems, sums = check_schemas(json.load(sys.stdin), folder, versions)
        case ["expressions"]:
            problems, sums = check_expressions(json.load(sys.stdin))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)
    for problem in problems:
        print(problem)
    print(f"{sums}: {len(problems)} problems")
    sys.exit(1 if problems else 0)


main()
