"""Read jaxprs."""


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)
