/* CanvasHost: keeps one canvas component per Streamlit element while its script runs again and again. */
const CanvasHost = (() => {
  const mounted = new WeakMap();

  /* create(component) mounts and returns a handle; update(handle, component) brings one up to date. `component` has
     the present data and triggers. The result takes the component down, unless a later call has taken over. */
  function host(component, create, update) {
    const root = component.parentElement;
    let entry = mounted.get(root);
    if (entry) {
      Object.assign(entry.component, component);
      update(entry.handle, component);
    } else {
      entry = { component: { ...component }, calls: 0 };
      entry.handle = create(entry.component);
      mounted.set(root, entry);
    }
    entry.calls += 1;
    const call = entry.calls;
    return () => {
      if (call !== entry.calls) return;
      entry.handle.destroy();
      mounted.delete(root);
    };
  }

  return { host };
})();
