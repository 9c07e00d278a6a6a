"""Holds the dashboards against Grafana's own types: `@grafana/schema` from the npm registry, read by TypeScript's compiler.

What a page may have, and what each kind of panel may be told, excess fields included: a misspelt option is an error here, while
Grafana would leave it out in silence. Queries of a data source have no types there; theirs are named below.
"""

import shutil
import subprocess
from pathlib import Path

from server.monitoring.files import files
from tests.e2e.dashboards.real_prometheus import MissingProgramError

PACKAGES = ("@grafana/schema@11.4.0", "typescript@5.5.4")  # the first: as the image in docker-compose.yml
_KINDS = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg",
    "stat": "stat/panelcfg/x/StatPanelCfg",
    "bargauge": "bargauge/panelcfg/x/BarGaugePanelCfg",
    "heatmap": "heatmap/panelcfg/x/HeatmapPanelCfg",
}
_TYPES = """
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from "@grafana/schema";

// The types as they are written in JSON: a name of an enumeration is the string that it stands for.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Source = { type: string; uid: string };
type Target = DataQuery & { expr: string; legendFormat: string; range: boolean; instant: boolean; format: string; exemplar?: true };
type Defaults = Omit<NonNullable<Panel["fieldConfig"]>["defaults"], "custom">;
type Shown<Kind, Options, Custom> = Omit<Panel, "options" | "targets" | "type" | "fieldConfig"> & {
  type: Kind;
  targets: Target[];
  options: Partial<Options>;
  fieldConfig: { defaults: Defaults & { custom?: Partial<Custom> }; overrides: [] };
};
type Mark = Omit<AnnotationQuery, "target"> & {
  target?: { type: string; tags: string[]; limit: number; matchAny: boolean };
  expr?: string;
  titleFormat?: string;
  textFormat?: string;
};
type Inner = %s;
type Page = Omit<Dashboard, "panels" | "annotations"> & {
  panels: (Inner | (Omit<RowPanel, "panels"> & { panels: Inner[] }))[];
  annotations: { list: Mark[] };
};
export const pages: Plain<Page>[] = [%s];
"""


def check_schema(folder: Path) -> None:
    """Compile all dashboards under their types, in this folder. Raises CalledProcessError if they do not fit, MissingProgramError
    without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingProgramError("npm is missing, which brings Grafana's types: apt install npm")
    (folder / "package.json").write_text('{"private": true}')
    quiet = ("--no-audit", "--no-fund", "--loglevel", "error")
    subprocess.run([npm, "install", *quiet, *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    imports, shown = [], []
    for kind, path in _KINDS.items():
        raw = f"./node_modules/@grafana/schema/dist/esm/raw/composable/{path}_types.gen"
        imports.append(f'import type * as {kind} from "{raw}";')
        custom = f"{kind}.FieldConfig" if kind == "timeseries" else "never"
        shown.append(f'Shown<"{kind}", {kind}.Options, {custom}>')
    pages = [text for name, text in files().items() if name.endswith(".json")]
    source = "\n".join(imports) + _TYPES % (" | ".join(shown), ",\n".join(pages))
    (folder / "pages.ts").write_text(source, encoding="utf-8")
    options = ("--strict", "--noEmit", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext")
    subprocess.run([folder / "node_modules/.bin/tsc", *options, "pages.ts"], cwd=folder, check=True)
    print(f"{len(pages)} dashboards fit the types of {PACKAGES[0]}")
