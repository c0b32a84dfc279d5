// Draw the dashboard's grid with the components of @grafana/ui.
import {
  DataFrame, EventBusSrv, FieldDisplay, getDisplayValueAlignmentFactors, getFieldDisplayValues, ThemeContext,
  VizOrientation,
} from '@grafana/data';
import {
  BarGauge, BigValue, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries, VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { ReactNode } from 'react';
import { createRoot } from 'react-dom/client';

import { fixNow, Input, prepare, themeOf, timeRange, withDefaults } from './panels';

const COLUMNS = 24, ROW_PX = 30, GAP_PX = 8, MARGIN_PX = 16;
const mode = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
const theme = themeOf(mode);

const NoData = ({ panel }: any) => (
  <div style={{ height: '100%', display: 'grid', placeItems: 'center', color: theme.colors.text.secondary }}>
    {panel.fieldConfig.defaults.noValue ?? 'No data'}
  </div>
);

function Values({ panel, data, width, height }: any) {
  const { reduceOptions, orientation, ...options } = panel.options;
  const getValues = () =>
    getFieldDisplayValues({
      data, fieldConfig: panel.fieldConfig, reduceOptions, theme, timeZone: 'utc',
      replaceVariables: (text: string) => text,
    });
  const bar = panel.type === 'bargauge';
  return (
    <VizRepeater<FieldDisplay, any>
      getValues={getValues}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={data} renderCounter={0} width={width} height={height} itemSpacing={bar ? 8 : 3}
      orientation={orientation ?? VizOrientation.Auto} autoGrid={!bar}
      minVizHeight={bar ? options.minVizHeight : undefined}
      minVizWidth={bar ? options.minVizWidth : undefined}
      maxVizHeight={bar ? options.maxVizHeight : undefined}
      renderValue={({ value, alignmentFactors, count, orientation: laid, ...place }) =>
        bar ? (
          <BarGauge
            {...place} value={value.display} field={value.field}
            display={value.view?.getFieldDisplayProcessor(value.colIndex ?? 0)}
            orientation={laid} theme={theme} alignmentFactors={alignmentFactors}
            displayMode={options.displayMode} showUnfilled={options.showUnfilled}
            valueDisplayMode={options.valueMode}
            namePlacement={options.namePlacement} itemSpacing={8} lcdCellWidth={12}
            text={options.text}
          />
        ) : (
          <BigValue
            {...place} value={value.display} theme={theme} count={count} alignmentFactors={alignmentFactors}
            colorMode={options.colorMode} graphMode={options.graphMode} justifyMode={options.justifyMode}
            textMode={options.textMode} disableWideLayout={!options.wideLayout} text={options.text}
          />
        )
      }
    />
  );
}

function Content({ panel, data, width, height, input }: any) {
  const [frame] = data as DataFrame[];
  if (!frame || (frame.length === 0 && panel.type !== 'table')) {
    return <NoData panel={panel} />;
  }
  if (panel.type === 'table') {
    return (
      <TableNG
        data={frame} width={width} height={height} noHeader={!panel.options.showHeader}
        cellHeight={panel.options.cellHeight} sortBy={panel.options.sortBy} structureRev={1}
        frozenColumns={panel.options.frozenColumns?.left} fieldConfig={panel.fieldConfig}
        enableVirtualization timeRange={timeRange(input)} resizable
        noValue={panel.fieldConfig.defaults.noValue}
      />
    );
  }
  if (panel.type === 'timeseries') {
    return (
      <TimeSeries
        frames={data} width={width} height={height} timeRange={timeRange(input)} timeZone="utc"
        legend={{ showLegend: true, calcs: [], ...panel.options.legend }} options={panel.options}
      />
    );
  }
  return <Values panel={panel} data={data} width={width} height={height} />;
}

function Grid({ input, prepared, width }: { input: Input; prepared: DataFrame[][]; width: number }) {
  const column = (width - 2 * MARGIN_PX + GAP_PX) / COLUMNS;
  const panels: any[] = input.board.panels.map(withDefaults);
  const bottom = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <div style={{ position: 'relative', height: bottom * (ROW_PX + GAP_PX) + 2 * MARGIN_PX }}>
      {panels.map((panel, at) => {
        const { x, y, w, h } = panel.gridPos;
        const size = { width: w * column - GAP_PX, height: h * (ROW_PX + GAP_PX) - GAP_PX };
        const place = { left: MARGIN_PX + x * column, top: MARGIN_PX + y * (ROW_PX + GAP_PX) };
        return (
          <section key={panel.id} style={{ position: 'absolute', ...place, ...size }}>
            <PanelChrome {...size} title={panel.title} description={panel.description}
              padding={panel.type === 'table' ? 'none' : 'md'}>
              {(innerWidth, innerHeight) => (
                <Content panel={panel} data={prepared[at]} width={innerWidth} height={innerHeight} input={input} />
              )}
            </PanelChrome>
          </section>
        );
      })}
    </div>
  );
}

async function main() {
  const input: Input = await (await fetch('input.json')).json();
  fixNow(input.nowMs);
  document.body.style.background = theme.colors.background.canvas;
  document.body.style.margin = '0';
  const prepared = [];
  for (const panel of input.board.panels.map(withDefaults)) {
    prepared.push(await prepare(panel, input, mode));
  }
  const onUncaughtError = (error: any) => {
    (window as any).failed = String(error?.stack ?? error);
  };
  const root = createRoot(document.getElementById('root')!, { onUncaughtError });
  const draw = (grid: ReactNode) =>
    root.render(
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        <PanelContextProvider value={{ eventsScope: 'dashboard', eventBus: new EventBusSrv() }}>
          {grid}
        </PanelContextProvider>
      </ThemeContext.Provider>
    );
  // A text is measured before it is placed, so the fonts of GlobalStyles come first.
  draw(null);
  await new Promise((resolve) => setTimeout(resolve));
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
  draw(<Grid input={input} prepared={prepared} width={innerWidth} />);
  (window as any).drawn = true;
}

void main().catch((error) => {
  (window as any).failed = String(error?.stack ?? error);
});
